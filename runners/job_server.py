"""Beam's job server with a Flink of its own in it: one Java process for one job, on loopback alone, that ends with us."""

import contextlib
import http.client
import json
import logging
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from typing import Self

import grpc
from apache_beam.portability.api import beam_job_api_pb2_grpc
from apache_beam.utils import subprocess_server

from runners import jars

LOCK = Path(__file__).with_name("flink.lock")
_TETHER = Path(__file__).with_name("tether.py")
_HOST = "localhost"
_START_SECONDS = 120
_PATIENCE_SECONDS = 10

_JVM = [
    "-XX:+UseSerialGC",
    # The second compiler takes as much time again as a job takes to start, and Python is what a job waits for.
    "-XX:TieredStopAtLevel=1",
    "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
    "-Dorg.slf4j.simpleLogger.showDateTime=true",
    "-Dorg.slf4j.simpleLogger.dateTimeFormat=yyyy-MM-dd'T'HH:mm:ss",
    # It warns of every bundle that was finalized.
    "-Dorg.slf4j.simpleLogger.log.org.apache.beam.runners.fnexecution.control.FnApiControlClient=error",
]

_MANIFEST = {
    "Manifest-Version": "1.0",
    "Main-Class": "org.apache.beam.runners.flink.FlinkJobServerDriver",
    # What Flink's own scripts open to it in Java 17.
    "Add-Exports": "java.rmi/sun.rmi.registry jdk.compiler/com.sun.tools.javac.api",
    "Add-Opens": "java.base/java.io java.base/java.lang java.base/java.lang.reflect java.base/java.net java.base/java.nio "
    "java.base/java.text java.base/java.time java.base/java.util java.base/java.util.concurrent "
    "java.base/java.util.concurrent.atomic java.base/java.util.concurrent.locks java.base/sun.nio.ch",
}

log = logging.getLogger(__name__)


class FlinkError(RuntimeError):
    """Flink can't be fetched or started, or it died."""


class JobServer:
    """A job server, and whatever it leaves in its directory, which is deleted when it ends.

    Attributes:
        directory: its own; what is put there, goes with it.
        log_file: what Java has to say: warnings and errors.
        flink_port: where Flink's own interface is, if its settings say so (rest.bind-port).
    """

    def __init__(self, log_file: Path | None = None, jar: Path | None = None, artifacts: Path | None = None):
        """Makes the directory.

        Args:
            log_file: default: in the directory.
            jar: one of Beam's own job servers, instead of the jars that are fetched. Those listen on every interface.
            artifacts: where there is to be a folder, for us alone, with what the job stages; TaskManagers read it by its
                path. Default: in the directory.
        """
        self.directory = Path(tempfile.mkdtemp(prefix="sottovoce-flink-"))
        self.log_file = log_file or self.directory / "flink.log"
        self._staged = self.directory / "staged"
        if artifacts is not None:
            artifacts.mkdir(parents=True, exist_ok=True)
            self._staged = Path(tempfile.mkdtemp(prefix="sottovoce-", dir=artifacts))
        self.job_port, self.flink_port = subprocess_server.pick_port(None, None)
        self._jar = jar
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: grpc.Channel | None = None

    def start(self) -> beam_job_api_pb2_grpc.JobServiceStub:
        """Starts it and waits until it answers.

        Raises:
            FlinkError: it ended, or takes longer than two minutes; the end of its log is in the message.
        """
        try:
            java = str(jars.java())
            jar = self._jar or _build_jar(jars.fetch_jars(LOCK), self.directory / "flink.jar")
        except jars.JarsError as error:
            raise FlinkError(str(error)) from error
        command = [java, *_JVM, f"-Djava.io.tmpdir={self.directory}", "-jar", str(jar)]
        command += [
            f"--job-port={self.job_port}",
            "--artifact-port=0",
            "--expansion-port=0",
            f"--artifacts-dir={self._staged}",
        ]
        with self.log_file.open("wb") as output:
            self._process = subprocess.Popen(  # noqa: S603  ours, no shell
                [sys.executable, "-I", str(_TETHER), str(os.getpid()), str(self.directory), *command],
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
        return self.log_file.read_text(encoding="utf-8", errors="replace")[-2000:] if self.log_file.exists() else ""

    def is_running(self) -> bool:
        """Whether Java is alive, or was a moment ago."""
        return self._process is not None and self._process.poll() is None

    def cancel_jobs(self) -> None:
        """Has Flink cancel its job, and waits until it is gone, ten seconds at most."""
        end = time.monotonic() + _PATIENCE_SECONDS
        # Where there is no job any more, nothing answers.
        with contextlib.suppress(OSError, http.client.HTTPException):
            while time.monotonic() < end:
                for job in json.loads(self._ask("GET", "/jobs"))["jobs"]:
                    if job["status"] not in ("CANCELLING", "CANCELED", "FAILED", "FINISHED"):
                        self._ask("PATCH", f"/jobs/{job['id']}?mode=cancel")
                time.sleep(0.1)

    def _ask(self, method: str, path: str) -> bytes:
        connection = http.client.HTTPConnection(_HOST, self.flink_port, timeout=_PATIENCE_SECONDS)
        try:
            connection.request(method, path)
            return connection.getresponse().read()
        finally:
            connection.close()

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


def _answers(port: int) -> bool:
    try:
        with socket.create_connection((_HOST, port), 1):
            return True
    except OSError:
        return False


def _build_jar(cache: Path, jar: Path) -> Path:
    """Writes a jar that names all the others, and holds the two classes that stand before theirs."""
    entries = {**_MANIFEST, "Class-Path": " ".join(path.as_uri() for path in sorted(cache.glob("*.jar")))}
    with zipfile.ZipFile(jar, "w") as target:
        target.writestr("META-INF/MANIFEST.MF", "".join(_folded(f"{name}: {value}") for name, value in entries.items()))
        for pattern, name, mend in _MENDED:
            with zipfile.ZipFile(next(cache.glob(pattern))) as source:
                target.writestr(name, mend(source.read(name)))
    return jar


def _folded(line: str) -> str:
    """A manifest's line holds 72 bytes; those that go on start with a space."""
    return "\r\n ".join(line[i : i + 70] for i in range(0, len(line), 70)) + "\r\n"


_SERVERS = "org/apache/beam/sdk/fn/server/ServerFactory$InetSocketAddressServerFactory.class"
_BUILDER = b"Lorg/apache/beam/vendor/grpc/v1p60p1/io/grpc/netty/NettyServerBuilder;"
_DESCRIPTOR = b"(Ljava/net/SocketAddress;)" + _BUILDER


def _on_loopback(code: bytes) -> bytes:
    """Beam's class that opens its servers, with `forAddress(socket)` in place of `forPort(socket.getPort())`.

    Beam takes an address on loopback and then listens on its port on every interface: whoever reaches it could have any
    command run here. In the class file of the locked jar the constants 160 and 166 are the methods getPort and forPort,
    163 and 164 are forPort's name and type, and constant 260, forAddress's type, is new.
    """
    return _replaced(
        code,
        (code[:8] + _short(260), code[:8] + _short(261)),
        (b"\x01\x00\x10BootstrapMethods", b"\x01\x00\x10BootstrapMethods\x01" + _short(len(_DESCRIPTOR)) + _DESCRIPTOR),
        (b"\x01\x00\x07forPort", b"\x01\x00\x0aforAddress"),
        (b"\x0c" + _short(163) + _short(164), b"\x0c" + _short(163) + _short(260)),
        # invokevirtual getPort, invokestatic forPort: the first becomes three times nop.
        (b"\xb6" + _short(160) + b"\xb8" + _short(166), b"\0\0\0\xb8" + _short(166)),
    )


_TRANSLATOR = "org/apache/beam/runners/flink/FlinkStreamingPortablePipelineTranslator.class"


def _with_side_inputs(code: bytes) -> bytes:
    """Beam's class that translates a streaming pipeline, with the coder by which a side input's values can be kept.

    Beam names a coder of windowed lists of values, and keeps lists of values: every checkpoint of a step with a side input
    fails, and the job starts again. `wv.withValueCoder(IterableCoder.of(wv.getValueCoder()))` becomes `wv.getValueCoder()`.
    """
    load, get, nops = b"\x19\x0c", b"\xb6" + _short(104), bytes(6)
    call = b"\xb8" + _short(121) + b"\xb6" + _short(296)
    return _replaced(code, (load + load + get + call + b"\x3a\x0b", load + b"\0\0" + get + nops + b"\x3a\x0b"))


def _replaced(code: bytes, *changes: tuple[bytes, bytes]) -> bytes:
    for old, new in changes:
        if code.count(old) != 1:
            raise FlinkError("flink.lock has another Beam than the one whose faults are mended here.")
        code = code.replace(old, new)
    return code


def _short(number: int) -> bytes:
    return number.to_bytes(2, "big")


_MENDED = (
    ("beam-sdks-java-core-*.jar", _SERVERS, _on_loopback),
    ("beam-runners-flink-*.jar", _TRANSLATOR, _with_side_inputs),
)
