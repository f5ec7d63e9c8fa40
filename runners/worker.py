"""A process for a Flink job's steps in Python. It ends with the job, and with the process that started it.

usage: python -P -m runners.worker CACHE_BYTES; on standard input comes a line that says for whom to work, and an empty one
to end in order; where it ends without, this ends at once. Log records go out on standard output.
"""

import contextlib
import json
import logging
import os
import sys
import threading
import time

import grpc

_TEARDOWN_SECONDS = 2


class _Told(logging.Handler):
    """Hands records on to the process that started this one, as lines of JSON."""

    def __init__(self, file_descriptor: int):
        super().__init__()
        self._file = os.fdopen(file_descriptor, "w", encoding="utf-8")

    def emit(self, record: logging.LogRecord) -> None:
        given = {name: getattr(record, name) for name in ("name", "levelno", "levelname", "created", "process")}
        with contextlib.suppress(OSError):  # nobody listens any more
            self._file.write(f"{json.dumps({**given, 'msg': self.format(record)})}\n")
            self._file.flush()


def _main(cache_bytes: int) -> None:
    told = _Told(os.dup(sys.stdout.fileno()))
    # What a step prints is no record.
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    logging.root.addHandler(told)
    logging.root.setLevel(logging.INFO)
    # Not before: it logs as it is imported.
    from apache_beam.runners.worker import sdk_worker

    _silence_lost_connections()
    if not (line := sys.stdin.readline().strip()):
        return
    url, worker_id = json.loads(line)
    threading.Thread(target=_end_with_input, daemon=True).start()
    with contextlib.suppress(grpc.RpcError):  # Flink has ended
        sdk_worker.SdkHarness(url, worker_id=worker_id, state_cache_size=cache_bytes).run()
    # Else libraries complain of what they had no time to clear away.
    os._exit(0)


def _end_with_input() -> None:
    """Ends this process: soon when it is told to, at once when the one that started it dies."""
    if sys.stdin.readline():
        time.sleep(_TEARDOWN_SECONDS)
    os._exit(1)


def _silence_lost_connections() -> None:
    """Keeps to itself what Beam's threads say when Flink dies: `flink.Result` says so."""
    logging.getLogger("apache_beam.runners.worker.data_plane").addFilter(
        lambda record: "Failed to read inputs" not in record.getMessage()
    )
    others = threading.excepthook

    def hook(died: threading.ExceptHookArgs) -> None:
        if not issubclass(died.exc_type, grpc.RpcError):
            others(died)

    threading.excepthook = hook


if __name__ == "__main__":
    _main(int(sys.argv[1]))
