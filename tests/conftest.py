"""No test touches the ledger of whoever runs it. Real brokers, one open and one secure, and a Flink: each started once."""

import os
import pathlib
from collections.abc import Iterator

import hypothesis
import pytest

from runners import cluster as clusters
from runners import flink_java, jars, kafka

# A machine that is busy with other tests is slow at times.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")


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
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(f"NOT RUN: {lock.stem} is not there: {error}")


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
