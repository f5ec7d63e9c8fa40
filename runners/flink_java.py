"""Flink in Java, and Beam's runner for it: the jars of `flink.lock`, the classes of Beam that are mended, and settings."""

import hashlib
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from runners import jars

LOCK = Path(__file__).with_name("flink.lock")

JVM = [
    "-XX:+UseSerialGC",
    # The second compiler takes as much time again as a job takes to start, and Python is what a job waits for.
    "-XX:TieredStopAtLevel=1",
    "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
    "-Dorg.slf4j.simpleLogger.showDateTime=true",
    "-Dorg.slf4j.simpleLogger.dateTimeFormat=yyyy-MM-dd'T'HH:mm:ss",
    # It warns of every bundle that was finalized.
    "-Dorg.slf4j.simpleLogger.log.org.apache.beam.runners.fnexecution.control.FnApiControlClient=error",
]

# By default a streaming job that always fails would be tried for ever.
RESTARTS = {
    "restart-strategy.type": "failure-rate",
    "restart-strategy.failure-rate.max-failures-per-interval": "5",
    "restart-strategy.failure-rate.failure-rate-interval": "5 min",
    "restart-strategy.failure-rate.delay": "1 s",
}

SETTING = "sottovoce.jars"
"""The name by which a cluster's settings have the fingerprint of its jars."""

_MANIFEST = {
    "Manifest-Version": "1.0",
    # What Flink's own scripts open to it in Java 17.
    "Add-Exports": "java.rmi/sun.rmi.registry jdk.compiler/com.sun.tools.javac.api",
    "Add-Opens": "java.base/java.io java.base/java.lang java.base/java.lang.reflect java.base/java.net java.base/java.nio "
    "java.base/java.text java.base/java.time java.base/java.util java.base/java.util.concurrent "
    "java.base/java.util.concurrent.atomic java.base/java.util.concurrent.locks java.base/sun.nio.ch",
}


def build_jar(cache: Path, jar: Path, main_class: str, stages: bool = True) -> Path:
    """Writes a jar that names all the others, and holds the mended classes, which stand before theirs.

    Args:
        cache: the directory of the jars.
        stages: whether Beam sends the jars along with a job.

    Raises:
        jars.JarsError: the lock has another Beam than the one that is mended here.
    """
    entries = {
        **_MANIFEST,
        "Main-Class": main_class,
        "Class-Path": " ".join(path.as_uri() for path in sorted(cache.glob("*.jar"))),
    }
    with zipfile.ZipFile(jar, "w") as target:
        target.writestr("META-INF/MANIFEST.MF", "".join(_folded(f"{name}: {value}") for name, value in entries.items()))
        for name, code in _mended(cache, _MENDED if stages else (*_MENDED, _UNSTAGED)):
            target.writestr(name, code)
    return jar


def fingerprint(cache: Path) -> str:
    """Says which jars and mended classes there are: a cluster with the same ones needs none of them from a job."""
    found = hashlib.sha256(LOCK.read_bytes())
    for _, code in _mended(cache, _MENDED):
        found.update(code)
    return found.hexdigest()


def _mended(cache: Path, mends: Iterable[tuple[str, str, Callable[[bytes], bytes]]]) -> Iterator[tuple[str, bytes]]:
    for pattern, name, mend in mends:
        with zipfile.ZipFile(next(cache.glob(pattern))) as source:
            yield name, mend(source.read(name))


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


_RESOURCES = "org/apache/beam/sdk/util/construction/resources/PipelineResources.class"


def _without_staging(code: bytes) -> bytes:
    """Beam's class that says which jars go along with a job, with `.jar` in place of a name whose bearers stay at home."""
    return _replaced(code, (b"\x01\x00\x0egradle/wrapper", b"\x01\x00\x04.jar"))


_DEFERRALS = "org/apache/beam/runners/fnexecution/control/BundleCheckpointHandlers$StateAndTimerBundleCheckpointHandler.class"


def _with_one_deferral(code: bytes) -> bytes:
    """Beam's class that keeps what a source defers, under one name for each element in place of a new one every time.

    Beam never lets go of a name: each takes a kilobyte of memory and of every later checkpoint, and beyond 32,767 of them every
    checkpoint fails. `idGenerator.getId()` becomes "" (the constant 54); what was kept under the name has been read by then.
    """
    return _replaced(code, (b"\x2a\xb4" + _short(3) + b"\xb9" + _short(18) + b"\x01\x00\x4d", b"\x12\x36" + bytes(7) + b"\x4d"))


def _replaced(code: bytes, *changes: tuple[bytes, bytes]) -> bytes:
    for old, new in changes:
        if code.count(old) != 1:
            raise jars.JarsError("flink.lock has another Beam than the one whose faults are mended here.")
        code = code.replace(old, new)
    return code


def _short(number: int) -> bytes:
    return number.to_bytes(2, "big")


_MENDED = (
    ("beam-sdks-java-core-*.jar", _SERVERS, _on_loopback),
    ("beam-runners-flink-*.jar", _TRANSLATOR, _with_side_inputs),
    ("beam-runners-java-fn-execution-*.jar", _DEFERRALS, _with_one_deferral),
)
_UNSTAGED = ("beam-sdks-java-core-*.jar", _RESOURCES, _without_staging)
