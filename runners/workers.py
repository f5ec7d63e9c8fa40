"""The processes in which a Flink job's steps in Python run, seen from the process that runs the job."""

import contextlib
import json
import logging
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import IO, cast

from apache_beam.options import pipeline_options
from apache_beam.portability import python_urns
from apache_beam.portability.api import beam_fn_api_pb2, beam_runner_api_pb2
from apache_beam.runners.worker import sdk_worker_main
from apache_beam.transforms import environments

from runners import boot

_PATIENCE_SECONDS = 5


class Workers(boot.Pool):
    """Worker processes on this machine, that have the code of the process that runs the job."""

    def __init__(self, options: pipeline_options.PipelineOptions):
        super().__init__()
        self._cache_bytes = sdk_worker_main._get_state_cache_size_bytes(options)
        # Flags may have it as text.
        self._per_environment = int(options.view_as(pipeline_options.PortableOptions).sdk_worker_parallelism)
        self._idle: list[_Worker] = []

    def take(self, pipeline: beam_runner_api_pb2.Pipeline) -> None:
        """Makes this the environment of those steps whose environment is LOOPBACK, and starts the processes for them.

        Flink gives each environment processes of its own. They import while Java starts.
        """
        external = environments.ExternalEnvironment(self.address).to_runner_api(None)
        for environment in pipeline.components.environments.values():
            if environment.urn == python_urns.EMBEDDED_PYTHON_LOOPBACK:
                environment.urn, environment.payload = external.urn, external.payload
                self._idle += [_Worker(self._cache_bytes) for _ in range(self._per_environment)]

    def start(self, request: beam_fn_api_pb2.StartWorkerRequest) -> boot.Worker:
        try:
            worker = self._idle.pop()
        except IndexError:  # the job is tried again
            worker = _Worker(self._cache_bytes)
        worker.work_for(request.control_endpoint.url, request.worker_id)
        return worker

    def _left(self) -> list[boot.Worker]:
        return [*self._idle, *super()._left()]


class _Worker:
    """One process; its log records are logged here."""

    def __init__(self, cache_bytes: int):
        self._process = subprocess.Popen(  # noqa: S603  ours, no shell
            [sys.executable, "-P", "-m", "runners.worker", str(cache_bytes)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # It has to find what the steps are made of.
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path or str(Path.cwd()) for path in sys.path)},
            # A key pressed in the terminal doesn't reach it: we end it when the job has been told.
            start_new_session=True,
        )
        self._input, self._records = (cast(IO[bytes], each) for each in (self._process.stdin, self._process.stdout))
        threading.Thread(target=self._log, name="log of a worker", daemon=True).start()

    def work_for(self, url: str, worker_id: str) -> None:
        """Has it work for the Flink at that URL."""
        self._input.write(f"{json.dumps([url, worker_id])}\n".encode())
        self._input.flush()

    def is_running(self) -> bool:
        return self._process.poll() is None

    def close(self) -> None:
        """Tells it to end."""
        if not self._input.closed:
            with contextlib.suppress(BrokenPipeError), self._input:
                self._input.write(b"\n")

    def stop(self) -> None:
        """Ends it, by force if it takes its time."""
        self.close()
        try:
            self._process.wait(_PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _log(self) -> None:
        with self._records as lines:
            for line in lines:
                if line.endswith(b"\n"):
                    record = logging.makeLogRecord(json.loads(line))
                    logger = logging.getLogger(record.name)
                    if logger.isEnabledFor(record.levelno):
                        logger.handle(record)
