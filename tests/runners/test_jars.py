"""Jars: each as its lock file has it, or none."""

import hashlib
import pathlib

import pytest

from runners import jars, kafka

LOCKED = "org.jspecify:jspecify:1.0.0"


@pytest.fixture
def lock(tmp_path) -> pathlib.Path:
    """A lock of one small jar, with its hash in `runners/kafka.lock`."""
    lines = kafka.LOCK.read_text().splitlines()
    file = tmp_path / "kafka.lock"
    file.write_text("# a comment\n" + next(line for line in lines if line.startswith(LOCKED)) + "\n")
    return file


def test_a_jar_that_was_tampered_with_is_deleted_and_refused(lock, tmp_path):
    jar = tmp_path / "cache" / "jspecify-1.0.0.jar"
    jar.parent.mkdir()
    jar.write_bytes(b"something else")
    with pytest.raises(jars.JarsError, match=f"{LOCKED}: has the sha256 {hashlib.sha256(b'something else').hexdigest()}, not"):
        jars.fetch_jars(lock, jar.parent)
    assert not jar.exists()


def test_a_jar_comes_whole_or_not_at_all(kafka_jars, lock, tmp_path):
    cache = tmp_path / "cache"
    assert jars.fetch_jars(lock, cache) == cache
    assert [path.name for path in cache.iterdir()] == ["jspecify-1.0.0.jar"]
    lock.write_text(f"{LOCKED} {'0' * 64}\n")
    other = tmp_path / "other"
    with pytest.raises(jars.JarsError, match=f"not {'0' * 64}"):
        jars.fetch_jars(lock, other)
    assert list(other.iterdir()) == []


def test_a_jar_that_is_nowhere_is_an_error(kafka_jars, lock, tmp_path):
    lock.write_text(f"org.jspecify:jspecify:0.0.0 {'0' * 64}\n")
    with pytest.raises(jars.JarsError, match=r"jspecify:0\.0\.0: can't be fetched"):
        jars.fetch_jars(lock, tmp_path / "cache")
