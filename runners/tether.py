"""Runs a command that ends with the process that started this one, however that one ends, and then deletes a directory.

usage: python -I tether.py PARENT DIRECTORY COMMAND...; to end it, send SIGTERM.
"""

import os
import shutil
import signal
import subprocess
import sys

_POLL_SECONDS = 0.2


def run(parent: int, directory: str, command: list[str]) -> int:
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
    shutil.rmtree(directory, ignore_errors=True)
    return code


if __name__ == "__main__":
    sys.exit(run(int(sys.argv[1]), sys.argv[2], sys.argv[3:]) != 0)
