"""The processes in which a Flink job's steps in Python run, seen from the process that runs the job."""

import contextlib
import json
import logging
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import IO, Any, Self, cast

import grpc
from apache_beam.options import pipeline_options
from apache_beam.portability import python_urns
from apache_beam.portability.api import beam_fn_api_pb2, beam_fn_api_pb2_grpc, beam_runner_api_pb2
from apache_beam.runners.worker import sdk_worker_main
from apache_beam.transforms import environments
from apache_beam.utils import thread_pool_executor

_PATIENCE_SECONDS = 5


class Workers(beam_fn_api_pb2_grpc.BeamFnExternalWorkerPoolServicer):
    """Starts worker processes as Flink asks for them. Beam's own pool listens on every interface, this one on loopback."""

    def __init__(self, options: pipeline_options.PipelineOptions):
        self._cache_bytes = sdk_worker_main._get_state_cache_size_bytes(options)
        # Flags may have it as text.
        self._per_environment = int(options.view_as(pipeline_options.PortableOptions).sdk_worker_parallelism)
        self._server = grpc.server(thread_pool_executor.shared_unbounded_instance())
        self._address = f"localhost:{self._server.add_insecure_port('localhost:0')}"
        self._idle: list[_Worker] = []
        self._working: dict[str, _Worker] = {}
        beam_fn_api_pb2_grpc.add_BeamFnExternalWorkerPoolServicer_to_server(self, self._server)

    def take(self, pipeline: beam_runner_api_pb2.Pipeline) -> None:
        """Makes this the environment of those steps whose environment is LOOPBACK, and starts the processes for them.

        Flink gives each environment processes of its own. They import while Java starts.
        """
        external = environments.ExternalEnvironment(self._address).to_runner_api(None)
        for environment in pipeline.components.environments.values():
            if environment.urn == python_urns.EMBEDDED_PYTHON_LOOPBACK:
                environment.urn, environment.payload = external.urn, external.payload
                self._idle += [_Worker(self._cache_bytes) for _ in range(self._per_environment)]

    def StartWorker(  # noqa: N802  Beam's name
        self, request: beam_fn_api_pb2.StartWorkerRequest, context: Any
    ) -> beam_fn_api_pb2.StartWorkerResponse:
        try:
            worker = self._idle.pop()
        except IndexError:  # the job is tried again
            worker = _Worker(self._cache_bytes)
        self._working[request.worker_id] = worker
        worker.work_for(request.control_endpoint.url, request.worker_id)
        return beam_fn_api_pb2.StartWorkerResponse()

    def StopWorker(  # noqa: N802
        self, request: beam_fn_api_pb2.StopWorkerRequest, context: Any
    ) -> beam_fn_api_pb2.StopWorkerResponse:
        if worker := self._working.get(request.worker_id):
            worker.stop()
            self._working.pop(request.worker_id, None)
        return beam_fn_api_pb2.StopWorkerResponse()

    def are_working(self) -> bool:
        """Whether Flink has not let go of all of them."""
        return any(worker.is_running() for worker in self._working.values())

    def __enter__(self) -> Self:
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop(None)
        left = [*self._idle, *self._working.values()]
        for worker in left:
            worker.close()
        for worker in left:
            worker.stop()


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
