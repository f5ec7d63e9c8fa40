"""The way to a real broker: what works, and what each thing that can be wrong is called, soon and without the password."""

import dataclasses
import logging
import time

import kafka
import kafka.admin
import pytest

from runners import kafka as broker_runner
from transforms.ingest import kafka_client
from transforms.ingest.kafka_client import Connection, KafkaError


@pytest.fixture(scope="module")
def plain(broker) -> Connection:
    return Connection(broker.bootstrap)


@pytest.fixture(scope="module")
def secure(secure_broker):
    """Makes the connection of a user of the secure broker."""

    def connection(user: str = broker_runner.ADMIN, **changes) -> Connection:
        given = Connection(secure_broker.bootstrap, "sasl_ssl", secure_broker.ca_file, user, secure_broker.password_file(user))
        return dataclasses.replace(given, **changes)

    return connection


@pytest.fixture(scope="module", autouse=True)
def topics(plain, secure) -> None:
    """Topic `events` on either broker; on the secure one `reader` may read it, `writer` may write it."""
    kafka_client.create_topic(plain, "events", 2)
    kafka_client.create_topic(secure(), "events", 3, {"message.timestamp.type": "LogAppendTime"})
    topic = kafka.admin.ResourcePattern(kafka.admin.ResourceType.TOPIC, "events")
    with kafka_client.admin(secure()) as admin:
        admin.create_acls(
            [
                kafka.admin.ACL(f"User:{user}", "*", operation, kafka.admin.ACLPermissionType.ALLOW, topic)
                for user, operation in (
                    ("reader", kafka.admin.ACLOperation.READ),
                    ("writer", kafka.admin.ACLOperation.WRITE),
                )
            ]
        )


def test_what_is_sent_is_counted_and_read(plain):
    with kafka_client.producer(plain) as producer:
        for number in range(3):
            producer.send("events", b"%d" % number, partition=1)
    assert kafka_client.topic_offsets(plain, "events") == {0: (0, 0), 1: (0, 3)}
    with kafka_client.consumer(plain) as consumer:
        part = kafka.TopicPartition("events", 1)
        consumer.assign([part])
        consumer.seek(part, 1)
        assert [record.value for record in consumer.poll(10_000)[part]] == [b"1", b"2"]


def test_users_do_what_they_may(secure):
    with kafka_client.producer(secure("writer")) as producer:
        producer.send("events", b"{}", partition=2)
    assert kafka_client.topic_offsets(secure("reader"), "events") == {0: (0, 0), 1: (0, 0), 2: (0, 1)}
    assert kafka_client.partitions(secure("writer"), "events", "WRITE") == [0, 1, 2]


def test_who_stamps_a_topic_is_known(plain, secure):
    assert kafka_client.timestamp_type(plain, "events") == "CreateTime"
    assert kafka_client.timestamp_type(secure(), "events") == "LogAppendTime"
    with pytest.raises(KafkaError, match=r"may not DESCRIBE_CONFIGS of topic 'events' .* ACLs"):
        kafka_client.timestamp_type(secure("stranger"), "events")


def test_a_topic_is_made_once(plain):
    with pytest.raises(kafka_client.TopicExistsError, match="topic 'events' is there already"):
        kafka_client.create_topic(plain, "events", 1)
    with pytest.raises(KafkaError, match="topic 'other': Unknown topic config name: speed"):
        kafka_client.create_topic(plain, "other", 1, {"speed": "high"})


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda plain, secure, path: dataclasses.replace(plain, bootstrap="127.0.0.1:9"), "no broker answers.*ECONNREFUSED"),
        (lambda plain, secure, path: dataclasses.replace(plain, bootstrap="nowhere.invalid:9"), "no broker answers.*DNS"),
        (lambda plain, secure, path: secure("reader", password_file=path), "user 'reader' or the password in .* is not right"),
        (lambda plain, secure, path: secure("nobody", password_file=path), "user 'nobody' or the .* is not right"),
        (
            lambda plain, secure, path: secure(ca_file=None),
            "certificate is not one that the system vouches for.*CERTIFICATE_VERIFY_FAILED",
        ),
        (lambda plain, secure, path: secure(bootstrap=plain.bootstrap), "doesn't speak TLS there: security = 'sasl_ssl'"),
        (
            lambda plain, secure, path: dataclasses.replace(plain, bootstrap=secure().bootstrap),
            "speaks TLS there: security = 'plaintext'|hangs up: security = 'plaintext'",
        ),
        (
            lambda plain, secure, path: Connection(secure().bootstrap, "ssl", secure().ca_file),
            "the broker wants a login: security = 'ssl'",
        ),
        (lambda plain, secure, path: secure(ca_file=path), "ca_file = .*: can't be used [(]no PEM certificates in it"),
        (lambda plain, secure, path: secure(ca_file=path / "none"), "ca_file = .*: can't be used [(]Not a directory"),
        (lambda plain, secure, path: secure(password_file=path / "none"), "password_file = .*: can't be read"),
        (lambda plain, secure, path: secure("reader", bootstrap=secure().bootstrap), None),
        (lambda plain, secure, path: secure("stranger"), "user 'stranger' may not READ topic 'events'.*ACLs"),
        (lambda plain, secure, path: secure("writer"), "user 'writer' may not READ topic 'events'.*ACLs"),
    ],
    ids=[
        "broker down",
        "no such host",
        "wrong password",
        "no such user",
        "wrong CA",
        "TLS to a plain broker",
        "plain to a TLS broker",
        "no login",
        "CA file without certificates",
        "no CA file",
        "no password file",
        "nothing is wrong",
        "no ACL",
        "an ACL to write alone",
    ],
)
def test_what_is_wrong_is_said_soon_without_the_password(plain, secure, change, match, tmp_path, caplog, monkeypatch):
    caplog.set_level(logging.INFO)
    if "'reader' or" not in str(match):  # one waits as long as it does outside of tests
        monkeypatch.setattr(kafka_client, "TIMEOUT_SECONDS", 2)
    wrong = tmp_path / "wrong"
    wrong.write_text("not-the-password\n")
    connection = change(plain, secure, wrong)
    start = time.monotonic()
    if match is None:
        assert kafka_client.topic_offsets(connection, "events")
        return
    with pytest.raises(KafkaError, match=match) as caught:
        kafka_client.topic_offsets(connection, "events")
    assert time.monotonic() - start < 10
    shown = str(caught.value) + str(caught.value.__cause__) + caplog.text
    assert "not-the-password" not in shown
    assert not any(
        secure(user).password_file.read_text().strip() in shown for user in ("admin", "reader", "writer", "stranger")
    )


def test_a_topic_that_is_missing_is_an_error(plain):
    start = time.monotonic()
    with pytest.raises(KafkaError, match="there is no topic 'nothing'"):
        kafka_client.topic_offsets(plain, "nothing")
    assert time.monotonic() - start < 10


@pytest.mark.parametrize("name", ["", "a b"])
def test_a_name_that_is_none_is_an_error(plain, name):
    with pytest.raises(KafkaError, match="InvalidTopicError"):
        kafka_client.topic_offsets(plain, name)


def test_what_goes_wrong_in_the_body_is_explained_too(secure):
    with (
        pytest.raises(KafkaError, match=r"user 'reader' may not do this .*ACLs"),
        kafka_client.producer(secure("reader")) as it,
    ):
        it.send("events", b"{}").get(5)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (("h:1", "sasl_ssl"), "'sasl_ssl' needs both username and password_file"),
        (("h:1", "sasl_plaintext", None, "ann"), "needs both"),
        (("h:1", "ssl", None, "ann"), "'ssl' takes neither"),
        (("h:1", "plaintext", "ca.pem"), "'plaintext' takes no ca_file"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(arguments, match):
    with pytest.raises(KafkaError, match=match):
        Connection(*arguments)


def test_an_empty_password_is_none(tmp_path):
    (tmp_path / "empty").write_text("\n")
    with pytest.raises(KafkaError, match="is empty"):
        kafka_client.options(Connection("h:1", "sasl_plaintext", None, "ann", tmp_path / "empty"))
