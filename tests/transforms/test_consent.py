"""Opt-outs and opt-ins of a real topic: the newest statement holds, and what isn't understood counts as an opt-out."""

import uuid

import pytest

from tests.pipelines import topics
from transforms.ingest import consent, kafka_client

OUT, IN = b'{"opted_out": true}', b'{"opted_out": false}'
DEBEZIUM = b'{"schema": {}, "payload": {"before": null, "after": {"opted_out": true}, "op": "c"}}'
DELETED = b'{"before": {"opted_out": true}, "after": null, "op": "d"}'


@pytest.fixture
def topic(broker) -> str:
    name = f"consent-{uuid.uuid4().hex}"
    kafka_client.create_topic(topics.connection(broker), name, 1, {"cleanup.policy": "compact"})
    return name


@pytest.mark.parametrize(
    ("statements", "opted_out"),
    [
        ([], set()),
        ([("ann", OUT), ("bob", IN)], {"ann"}),
        ([("ann", OUT), ("ann", IN)], set()),
        ([("ann", IN), ("ann", OUT)], {"ann"}),
        ([("ann", OUT), ("ann", None)], set()),
        ([("ann", OUT), ("ann", DELETED)], set()),
        ([("ann", DEBEZIUM)], {"ann"}),
        ([('{"privacy_id": "ann"}', OUT), ('{"schema": {}, "payload": {"privacy_id": 7}}', OUT)], {"ann", "7"}),
        ([('{"privacy_id": "ann"}', OUT), ("ann", IN)], set()),
        ([('{"other": "ann"}', OUT)], {'{"other": "ann"}'}),
        *(([("ann", IN), ("ann", value)], {"ann"}) for value in (b"", b"\xff", b"1", b"[", b"{}", b"null")),
        ([("ann", b'{"opted_out": "true"}')], {"ann"}),
    ],
)
def test_the_newest_statement_of_each_id_holds(broker, topic, statements, opted_out):
    topics.send(broker, topic, ({"key": key.encode(), "value": value} for key, value in statements))
    assert consent.opted_out(topics.connection(broker), topic) == opted_out


@pytest.mark.parametrize("key", [b"", b"\xff", b'{"privacy_id": null}', b'{"privacy_id": ""}'])
def test_a_statement_that_names_nobody_is_an_error(broker, topic, key):
    topics.send(broker, topic, [{"key": b"ann", "value": OUT}, {"key": key, "value": OUT}])
    with pytest.raises(kafka_client.KafkaError, match=f"offset 1 of {topic}/0 .* names nobody"):
        consent.opted_out(topics.connection(broker), topic)


def test_opting_out_is_stated_once_whatever_the_id_looks_like(broker, topic):
    connection, ids = (
        topics.connection(broker),
        {"ann", " b ", '{"privacy_id": "x"}', '{"schema": 1, "payload": null}', "7", "Zoë"},
    )
    topics.send(broker, topic, [{"key": b"ann", "value": OUT}, {"key": b"7", "value": IN}])
    assert consent.opt_out(connection, topic, ids) == 5
    assert consent.opt_out(connection, topic, ids) == 0
    assert consent.opted_out(connection, topic) == ids
