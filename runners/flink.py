"""Flink on this machine, from pip alone: the engine for streams, and for batch too.

A job has a Flink of its own, a Java process that starts and ends with it, and processes for its steps in Python. Beam's
own `--flink_master=[local]` has faults that are mended here: a job that was cancelled went on, its Java stayed until we
ended, and its servers let anyone on the network run commands here (see docs/flink.md).
"""

import argparse
import atexit
import contextlib
import logging
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc
from apache_beam.options import pipeline_options
from apache_beam.portability.api import beam_runner_api_pb2
from apache_beam.runners import runner
from apache_beam.runners.portability import flink_runner, portable_runner
from apache_beam.transforms import environments

from runners import beam_flags, flink_java, staging, workers
from runners.flink_rest import FlinkError
from runners.job_server import JobServer

_RUNNER = f"{__name__}.Runner"

# What Beam's runner in Java takes beside Beam's options in Python.
_VALUES = """
    auto_watermark_interval checkpoint_timeout_millis checkpointing_interval checkpointing_mode execution_mode_for_batch
    execution_retry_delay file_input_split_max_size_m_b flink_conf_dir job_check_interval_in_secs latency_tracking_interval
    max_bundle_size max_bundle_time_mills min_pause_between_checkpoints num_concurrent_checkpoints
    number_of_execution_retries report_checkpoint_duration savepoint_path shutdown_sources_after_idle_ms state_backend
    state_backend_factory state_backend_storage_path
"""
_SWITCHES = """
    allow_non_restored_state auto_balance_write_files_sharding_enabled disable_metrics enable_stable_input_drain
    externalized_checkpoints_enabled faster_copy finish_bundle_before_checkpointing force_unaligned_checkpoint_enabled
    object_reuse re_iterable_group_by_key_result retain_externalized_checkpoints_on_cancellation
    unaligned_checkpoint_enabled use_data_stream_for_batch
"""

_PATIENCE_SECONDS = 5

log = logging.getLogger(__name__)


class FlinkOptions(pipeline_options.PipelineOptions):
    """The options of Flink, and two of ours."""

    @classmethod
    def _add_argparse_args(cls, parser: argparse.ArgumentParser) -> None:
        for name in _VALUES.split():
            parser.add_argument(f"--{name}")
        for name in _SWITCHES.split():
            parser.add_argument(f"--{name}", action="store_true", default=None)
        parser.add_argument("--flink_directory", help="Where a streaming job keeps its checkpoints and its log.")
        parser.add_argument("--staged_sha256", help="For workers elsewhere; the runner gives it.")


def options(
    flags: Sequence[str] = (),
    parallelism: int = 1,
    streaming: bool = False,
    checkpoint_seconds: float = 10.0,
    directory: Path | None = None,
) -> pipeline_options.PipelineOptions:
    """Returns Beam's options for a job on Flink here. Flags that the user gave win.

    Args:
        flags: Beam's and Flink's; `--runner=FlinkRunner` is what it is anyway.
        parallelism: how many subtasks a step has, and in how many processes they run in Python.
        streaming: whether there are sources without an end.
        checkpoint_seconds: between checkpoints. After a failure, a streaming job goes on from the last one.
        directory: where a streaming job keeps its checkpoints and its log, one directory a job. A job whose directory has a
            checkpoint goes on from there, whatever ended the one before. None: they end with the job.

    Raises:
        ValueError: a flag that neither Beam nor Flink knows, or a word that belongs to no flag.
    """
    defaults = [
        f"--runner={_RUNNER}",
        "--flink_master=[local]",
        "--flink_version=1.19",
        "--environment_type=LOOPBACK",
        # Else each job asks pip for a list of packages, and leaves it in a directory that nobody clears away.
        "--experiments=disable_logging_submission_environment",
        f"--parallelism={parallelism}",
        f"--sdk_worker_parallelism={parallelism}",
    ]
    if streaming:
        defaults += [
            "--streaming",
            f"--checkpointing_interval={int(checkpoint_seconds * 1000)}",
            # With larger ones and checkpoints, a source that is polled was never polled again.
            "--max_bundle_size=1",
            "--max_bundle_time_mills=100",
        ]
        if not any(flag.split("=")[0] == "--parallelism" for flag in flags):
            # A state has a map for each of so many groups of keys, 128 by default, and takes 80 kB with them.
            defaults.append(f"--max_parallelism={parallelism}")
    else:
        # Else each stage starts a Python of its own.
        defaults.append("--environment_cache_millis=30000")
    if directory is not None:
        defaults.append(f"--flink_directory={directory}")
    return beam_flags.parse([flag for flag in flags if flag != "--runner=FlinkRunner"], defaults)


def last_checkpoint(directory: Path) -> Path | None:
    """The newest checkpoint or savepoint that is complete, of whichever job in the directory."""
    found = (*directory.glob("checkpoints/*/chk-*/_metadata"), *directory.glob("savepoints/*/_metadata"))
    return max((path.parent for path in found), key=lambda path: path.stat().st_mtime, default=None)


class Runner(flink_runner.FlinkRunner):
    """Beam's FlinkRunner with a job server for each job, that ends with it."""

    def __init__(self) -> None:
        super().__init__()
        self._code: tempfile.TemporaryDirectory[str] | None = None

    def default_environment(self, options: pipeline_options.PipelineOptions) -> environments.Environment:
        """Where steps in Python run; where that is elsewhere, our code goes along."""
        if options.view_as(pipeline_options.PortableOptions).environment_type != "LOOPBACK":
            self._code = tempfile.TemporaryDirectory(prefix="sottovoce-")
            options = staging.with_code(options, Path(self._code.name))
        return super().default_environment(options)

    def run_portable_pipeline(
        self, pipeline: beam_runner_api_pb2.Pipeline, options: pipeline_options.PipelineOptions
    ) -> runner.PipelineResult:
        options.view_as(FlinkOptions).staged_sha256 = staging.hashes(pipeline)
        try:
            return self._submit(pipeline, options)
        finally:
            staging.clear(pipeline)
            if self._code is not None:
                self._code.cleanup()

    def _submit(
        self, pipeline: beam_runner_api_pb2.Pipeline, options: pipeline_options.PipelineOptions
    ) -> runner.PipelineResult:
        if options.view_as(pipeline_options.PortableOptions).job_endpoint:
            return super().run_portable_pipeline(pipeline, options)
        # Else Java looks for a class of this name.
        options.view_as(pipeline_options.StandardOptions).runner = None
        flink = options.view_as(FlinkOptions)
        directory = Path(flink.flink_directory).absolute() if flink.flink_directory else None
        if directory is not None:
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        with contextlib.ExitStack() as stack:
            ours = options.view_as(pipeline_options.FlinkRunnerOptions)
            artifacts = options.view_as(pipeline_options.JobServerOptions).artifacts_dir
            server = stack.enter_context(
                JobServer(
                    None if directory is None else directory / "flink.log",
                    Path(ours.flink_job_server_jar) if ours.flink_job_server_jar else None,
                    Path(artifacts).absolute() if artifacts else None,
                    None if ours.flink_master.startswith("[") else ours.flink_master,
                )
            )
            if flink.flink_conf_dir is None:
                flink.flink_conf_dir = str(server.directory)
                is_stream = options.view_as(pipeline_options.StandardOptions).streaming
                settings = _settings(server, directory, is_stream)
                (server.directory / "flink-conf.yaml").write_text(settings, encoding="utf-8")
            python = stack.enter_context(workers.Workers(options))
            python.take(pipeline)
            stub = server.start()
            job = self.create_job_service_handle(stub, options)
            job_id, messages, states = job.submit(self._optimize_pipeline(pipeline, options))
            return Result(stub, job_id, _until_lost(messages), states, server, python, stack.pop_all(), directory)


def _until_lost(messages: Iterator[Any]) -> Iterator[Any]:
    """Flink's messages until it dies, of which `Result` tells."""
    with contextlib.suppress(grpc.RpcError):
        yield from messages


class Result(portable_runner.PipelineResult):
    """A job and its Flink. That one ends with the job, with `cancel`, or with this process."""

    def __init__(
        self,
        stub: Any,
        job_id: str,
        messages: Any,
        states: Any,
        server: JobServer,
        python: workers.Workers,
        parts: contextlib.ExitStack,
        directory: Path | None = None,
    ):
        super().__init__(stub, job_id, messages, states, [self._end])
        self._server, self._workers, self._parts = server, python, parts
        self._directory = directory
        self._log_tail = ""
        self._is_cancelled = self._is_over = False
        # Reentrant: a signal's handler may cancel what is ending.
        self._ending = threading.RLock()
        atexit.register(self._end)

    @property
    def state(self) -> str:
        if not self._is_over:
            try:
                return super().state
            except grpc.RpcError:  # Flink has died
                self._state = runner.PipelineState.FAILED
        return self._state

    def cancel(self) -> None:
        if not self._is_over and not runner.PipelineState.is_terminal(self.state):
            self._is_cancelled = True
            with contextlib.suppress(grpc.RpcError):
                # To Beam the job is cancelled when it was told so; it would go on.
                super().cancel()
            self._state = runner.PipelineState.CANCELLED
        self._end()

    def stop(self) -> None:
        """Ends a streaming job with a savepoint in its directory, from which the next job with that directory goes on.

        Raises:
            FlinkError: there is no savepoint, for the reason given; the job has ended all the same, and the next one goes on
                from the last checkpoint, if there is one.
        """
        if self._directory is None:
            raise ValueError("Result.stop: the job has no directory (flink.options) for its savepoint.")
        before = last_checkpoint(self._directory)
        try:
            self._server.stop_job((self._directory / "savepoints").as_uri())
        except FlinkError:
            # A Flink of the job's own is gone with it, at times before it was asked how that went.
            now = last_checkpoint(self._directory)
            if now == before or now is None or now.parent.name != "savepoints":
                raise
        finally:
            self.cancel()

    def wait_until_finish(self, duration: int | None = None) -> str:
        """Waits until the job ends, at most `duration` milliseconds; returns its state.

        Raises:
            FlinkError: Flink died.
            RuntimeError: the job failed.
        """
        if self._is_cancelled:
            return runner.PipelineState.CANCELLED
        try:
            return super().wait_until_finish(duration)
        except (grpc.RpcError, RuntimeError) as error:
            if self._is_cancelled:
                return runner.PipelineState.CANCELLED
            if isinstance(error, grpc.RpcError):
                self._state = runner.PipelineState.FAILED
                raise FlinkError(f"Flink died; the end of its log:\n{self._log_tail}") from error
            raise

    def _end(self) -> None:
        with self._ending:
            if self._is_over:
                return
            with contextlib.suppress(grpc.RpcError):
                self.metrics()  # for later: they are Flink's
            self._is_over = True
            self._server.cancel_job()
            if self._state != runner.PipelineState.DONE:  # else Flink keeps them for another stage
                self._wait_for_workers()
            self._log_tail = self._server.log_tail()
            self._parts.close()
            atexit.unregister(self._end)

    def _wait_for_workers(self) -> None:
        """Waits until Flink has let go of them, some seconds at most."""
        end = time.monotonic() + _PATIENCE_SECONDS
        while self._workers.are_working() and self._server.is_running() and time.monotonic() < end:
            time.sleep(0.05)


def _settings(server: JobServer, directory: Path | None, is_stream: bool) -> str:
    """Flink's own settings of a job: on loopback alone, and from the directory's last checkpoint on, if it has one."""
    settings = {
        "$internal.pipeline.job-id": server.job_id,
        "rest.bind-address": "localhost",
        "rest.bind-port": str(server.flink_port),
        "jobmanager.bind-host": "localhost",
        "taskmanager.bind-host": "localhost",
    }
    if is_stream:
        settings |= flink_java.RESTARTS
    if directory is not None:
        settings |= {
            "state.checkpoints.dir": (directory / "checkpoints").as_uri(),
            "state.checkpoint-storage": "filesystem",
            "state.checkpoints.num-retained": "2",
            "execution.checkpointing.externalized-checkpoint-retention": "RETAIN_ON_CANCELLATION",
        }
        if checkpoint := last_checkpoint(directory):
            log.info("going on from the checkpoint %s", checkpoint)
            # It is then Flink's, and deleted when there are newer ones.
            settings |= {"execution.savepoint.path": checkpoint.as_uri(), "execution.savepoint-restore-mode": "CLAIM"}
    return "".join(f"{name}: {value}\n" for name, value in settings.items())
