"""Items of a real topic: the newest statement of each holds, and what is bad is named by its place alone."""

import json
import uuid

import pytest

from tests.pipelines import topics
from transforms.ingest import items, kafka_client


@pytest.fixture
def topic(broker) -> str:
    name = f"items-{uuid.uuid4().hex}"
    kafka_client.create_topic(topics.connection(broker), name, 1, {"cleanup.policy": "compact"})
    return name


def change(op: str, before: object, after: object) -> dict:
    return {"schema": {}, "payload": {"op": op, "before": before, "after": after}}


def as_messages(sent: list[tuple[object, object]]) -> list[dict]:
    return [
        {name: given if given is None or isinstance(given, bytes) else json.dumps(given).encode() for name, given in pair}
        for pair in (zip(("key", "value"), each, strict=True) for each in sent)
    ]


@pytest.mark.parametrize(
    ("sent", "rows"),
    [
        ([], []),
        ([(b"b", {"n": 1}), (b"a", {"n": [2.5]})], [{"sku": "a", "n": [2.5]}, {"sku": "b", "n": 1}]),
        ([(b"a", {"n": 1}), (b"a", {"m": 2})], [{"sku": "a", "m": 2}]),
        ([(b"a", {"n": 1}), (b"a", None)], []),
        ([(b"a", None), (b"a", {"n": 1})], [{"sku": "a", "n": 1}]),
        ([({"sku": 7}, change("c", None, {"sku": 7, "n": 1}))], [{"sku": "7", "n": 1}]),
        ([(b"7", {"sku": 7.0})], [{"sku": "7"}]),
        ([(b"a", {"n": 1}), ({"item_id": "a"}, change("u", None, {"n": 2}))], [{"sku": "a", "n": 2}]),
        ([({"schema": {}, "payload": {"sku": "a"}}, {}), (b"a", change("d", {"sku": "a"}, None))], []),
        ([(b"a", b"{"), (b"a", {"n": 1})], [{"sku": "a", "n": 1}]),
    ],
    ids=[
        "none",
        "by id",
        "newest",
        "tombstone",
        "made anew",
        "created",
        "whole number",
        "changed, one key in two forms",
        "deleted",
        "bad one mended",
    ],
)
def test_the_newest_statement_of_each_item_holds(broker, topic, sent, rows):
    topics.send(broker, topic, as_messages(sent))
    assert items.rows(topics.connection(broker), topic, "sku") == rows


def test_the_newest_is_told_by_the_brokers_time_wherever_it_lies(broker):
    topic = f"items-{uuid.uuid4().hex}"
    kafka_client.create_topic(topics.connection(broker), topic, 2, {"cleanup.policy": "compact"})
    for partition, given in ((1, {"n": 1}), (0, {"n": 2})):
        [message] = as_messages([(b"a", given)])
        topics.send(broker, topic, [{**message, "partition": partition, "timestamp_ms": 1000 + partition}])
    assert items.rows(topics.connection(broker), topic, "sku") == [{"sku": "a", "n": 1}]


@pytest.mark.parametrize(
    ("key", "value", "why"),
    [
        *(
            (key, {"n": 1}, "names no item")
            for key in (b"", b"\xff", b'{"', {"id": "secret"}, {"sku": ["secret"]}, {"sku": True})
        ),
        ({"sku": 1.5}, {"n": 1}, "names no item"),
        ({"sku": "a", "shop": "secret"}, {"n": 1}, "names no item"),
        ({"sku": "\ud800"}, {"n": 1}, "names no item"),
        (b"a", b"secret", "not JSON"),
        (b"a", ["secret"], "not a JSON object"),
        (b"a", change("x", None, {"n": "secret"}), "op isn't"),
        (b"a", change("u", None, "secret"), "has no row"),
        (b"a", {"sku": "secret"}, "another item's than its key"),
        (b"a", {"sku": ["secret"]}, "text or a whole number"),
    ],
)
def test_what_is_bad_is_named_by_its_place_alone(broker, topic, key, value, why):
    topics.send(broker, topic, as_messages([(b"b", {"n": 1}), (key, value)]))
    with pytest.raises(kafka_client.KafkaError, match=f"offset 1 of {topic}/0, the catalogue's topic, .*{why}") as raised:
        items.rows(topics.connection(broker), topic, "sku")
    assert "secret" not in str(raised.value)
