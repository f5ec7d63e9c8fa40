"""Beam's job server: one Java process for one job, with a Flink of its own in it or for a cluster, that ends with us."""

import contextlib
import json
import logging
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Self

import grpc
from apache_beam.portability.api import beam_job_api_pb2_grpc

from runners import background, flink_java, flink_rest, jars
from runners.flink_rest import FlinkError

_TETHER = Path(__file__).with_name("tether.py")
_HOST = "localhost"
_START_SECONDS = 120
_PATIENCE_SECONDS = 10
_MAIN = "org.apache.beam.runners.flink.FlinkJobServerDriver"

log = logging.getLogger(__name__)


class JobServer:
    """A job server, and whatever it leaves in its directory, which is deleted when it ends.

    Attributes:
        directory: its own; what is put there, goes with it.
        log_file: what Java has to say: warnings and errors.
        flink_port: where its own Flink's interface is, if Flink's settings say so (rest.bind-port).
        job_id: what Flink calls the job, if its settings say so ($internal.pipeline.job-id).
    """

    def __init__(
        self,
        log_file: Path | None = None,
        jar: Path | None = None,
        artifacts: Path | None = None,
        master: str | None = None,
    ):
        """Makes the directory.

        Args:
            log_file: default: in the directory.
            jar: one of Beam's own job servers, instead of the jars that are fetched. Those listen on every interface.
            artifacts: where there is to be a folder, for us alone, with what the job stages; TaskManagers read it by its
                path. Default: in the directory.
            master: HOST:PORT of the cluster that the job is for; None: a Flink of its own.

        Raises:
            FlinkError: no port is free, or `artifacts` can't be written to.
        """
        try:
            self.job_port, self.flink_port = background.choose_ports(_HOST, None, None)
        except background.PortError as error:
            raise FlinkError(str(error)) from error
        staged = None if artifacts is None else _make_staged(artifacts)
        self.directory = Path(tempfile.mkdtemp(prefix="sottovoce-flink-"))
        self.log_file = log_file or self.directory / "flink.log"
        self._staged = staged or self.directory / "staged"
        self.job_id = secrets.token_hex(16)
        self._is_remote = master is not None
        self._flink = flink_rest.Flink(master or f"{_HOST}:{self.flink_port}")
        self._jar = jar
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: grpc.Channel | None = None

    def start(self) -> beam_job_api_pb2_grpc.JobServiceStub:
        """Starts it and waits until it answers.

        Raises:
            FlinkError: it ended, or takes longer than two minutes: the end of its log is in the message; or no cluster answers.
        """
        try:
            java = str(jars.java())
            settings = self._flink.settings() if self._is_remote else {}
            jar = self._jar or self._build_jar(settings.get(flink_java.SETTING))
        except jars.JarsError as error:
            raise FlinkError(str(error)) from error
        command = [java, *flink_java.JVM, f"-Djava.io.tmpdir={self.directory}", "-jar", str(jar)]
        command += [
            f"--job-port={self.job_port}",
            "--artifact-port=0",
            "--expansion-port=0",
            f"--artifacts-dir={self._staged}",
        ]
        job = self._flink.job_url(self.job_id) if self._is_remote else ""
        directories = json.dumps([str(self._staged), str(self.directory)])
        with self.log_file.open("wb") as output:
            self._process = subprocess.Popen(  # noqa: S603  ours, no shell
                [sys.executable, "-I", str(_TETHER), str(os.getpid()), directories, job, *command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                # A key pressed in the terminal doesn't reach it: we end it when the job has been told.
                start_new_session=True,
            )
        end = time.monotonic() + _START_SECONDS
        while not _answers(self.job_port):
            if self._process.poll() is not None or time.monotonic() > end:
                raise FlinkError(f"Flink did not start; the end of its log:\n{self.log_tail()}")
            time.sleep(0.05)
        self._channel = grpc.insecure_channel(f"{_HOST}:{self.job_port}", [("grpc.max_receive_message_length", -1)])
        return beam_job_api_pb2_grpc.JobServiceStub(self._channel)

    def log_tail(self) -> str:
        """The end of the log."""
        return background.tail(self.log_file)

    def is_running(self) -> bool:
        """Whether Java is alive, or was a moment ago."""
        return self._process is not None and self._process.poll() is None

    def cancel_job(self) -> None:
        """Has Flink cancel the job, and waits until it is gone, ten seconds at most."""
        end = time.monotonic() + _PATIENCE_SECONDS
        # Where there is no job any more, nothing answers, or nothing knows it.
        with contextlib.suppress(FlinkError):
            while time.monotonic() < end and (state := self._flink.state(self.job_id)) not in flink_rest.ENDED:
                if state != flink_rest.CANCELLING:
                    self._flink.cancel(self.job_id)
                time.sleep(0.1)

    def stop_job(self, savepoints: str) -> None:
        """Has Flink end the job with a savepoint.

        Args:
            savepoints: the URI of the directory in which it is made.

        Raises:
            FlinkError: there is none, or Flink ended before it told of it, as a Flink for one job may.
        """
        self._flink.stop(self.job_id, savepoints)

    def _build_jar(self, fingerprint_there: str | None) -> Path:
        """The jar to start: a cluster that has the same jars gets none of them from the job."""
        cache = jars.fetch_jars(flink_java.LOCK)
        is_there = fingerprint_there == flink_java.fingerprint(cache)
        return flink_java.build_jar(cache, self.directory / "flink.jar", _MAIN, stages=not is_there)

    def stop(self) -> None:
        """Ends it at once, with the job that it runs, and deletes its directory."""
        if self._channel is not None:
            self._channel.close()
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(_PATIENCE_SECONDS)
            except subprocess.TimeoutExpired:
                log.warning("Flink's process %d does not end", self._process.pid)
        for directory in (self._staged, self.directory):
            shutil.rmtree(directory, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def _make_staged(artifacts: Path) -> Path:
    try:
        artifacts.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix="sottovoce-", dir=artifacts))
    except OSError as error:
        raise FlinkError(f"no folder for what the job stages can be made in {artifacts} ({error.strerror}).") from error


def _answers(port: int) -> bool:
    try:
        with socket.create_connection((_HOST, port), 1):
            return True
    except OSError:
        return False
