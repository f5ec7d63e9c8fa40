"""Runs a command that ends with the process that started this one, however that one ends, and then deletes directories.

usage: python -I tether.py PARENT DIRECTORIES JOB COMMAND...; to end it, send SIGTERM. DIRECTORIES is a JSON list. JOB is the
URL of the command's job on a Flink cluster, which is then cancelled if it has not ended; or nothing. Where no Flink answers, a
process that is left behind asks again for a minute: the job may live on without its JobManager, until that is back.
"""

import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.parse

_POLL_SECONDS = 0.2
_PATIENCE_SECONDS = 5
_UNKNOWN_SECONDS = 2
_AWAY_SECONDS = 60


def run(parent: int, directories: list[str], job: str, command: list[str]) -> int:
    """Returns the command's exit code; negative: it was killed, when process `parent` was over or on SIGTERM."""
    told_to_end: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: told_to_end.append(number))
    process = subprocess.Popen(command)  # noqa: S603  ours, no shell
    while os.getppid() == parent and not told_to_end:
        try:
            process.wait(_POLL_SECONDS)
            break
        except subprocess.TimeoutExpired:
            continue
    process.kill()
    code = process.wait()
    for directory in directories:
        shutil.rmtree(directory, ignore_errors=True)
    # Whoever waits for this process needn't wait for a JobManager that is away.
    if job and not _cancel(job) and os.fork() == 0:
        end = time.monotonic() + _AWAY_SECONDS
        while not _cancel(job) and time.monotonic() < end:
            time.sleep(_POLL_SECONDS)
        os._exit(0)
    return code


def _cancel(job: str) -> bool:
    """Asks Flink to; again where it doesn't know the job, which may have been on its way when the command was killed.

    Returns:
        Whether Flink answers: a JobManager that is about to be one (HTTP 503) doesn't.
    """
    url = urllib.parse.urlsplit(job)
    end = time.monotonic() + _UNKNOWN_SECONDS
    status: int = http.HTTPStatus.NOT_FOUND
    while status == http.HTTPStatus.NOT_FOUND and time.monotonic() < end:
        connection = http.client.HTTPConnection(url.hostname or "", url.port, timeout=_PATIENCE_SECONDS)
        try:
            connection.request("PATCH", f"{url.path}?mode=cancel")
            status = connection.getresponse().status
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()
        time.sleep(_POLL_SECONDS)
    return status < http.HTTPStatus.INTERNAL_SERVER_ERROR


if __name__ == "__main__":
    sys.exit(run(int(sys.argv[1]), json.loads(sys.argv[2]), sys.argv[3], sys.argv[4:]) != 0)
