"""One way to a Kafka broker for all of the system: the settings, the clients, and errors that say what to mend.

kafka-python answers most of what can go wrong with a timeout; the cause is in its log alone, which is listened to here.
"""

import collections
import contextlib
import dataclasses
import itertools
import logging
import re
import ssl
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import kafka
import kafka.admin
import kafka.errors

from data import errors

SASL_MECHANISM = "SCRAM-SHA-512"
TIMEOUT_SECONDS = 5
"""How long a broker may take to answer at all: to connect, or to tell of a topic."""
_SEND_AT_ONCE = 10_000

Security = Literal["plaintext", "ssl", "sasl_plaintext", "sasl_ssl"]
Operation = Literal["READ", "WRITE"]


class KafkaError(errors.BadInputError):
    """The broker or a topic can't be used. The message says what to mend and never shows the password."""


class TopicExistsError(KafkaError):
    """The topic that was to be made is there already."""


@dataclasses.dataclass(frozen=True)
class Connection:
    """How to reach a broker.

    Attributes:
        bootstrap: HOST:PORT, or several with commas between.
        ca_file: certificates (PEM) of the authorities that may vouch for the broker; None: the system's. For *ssl alone.
        username: for sasl_* alone, as is `password_file`, whose text less the white space at its ends is the password.
    """

    bootstrap: str
    security: Security = "plaintext"
    ca_file: Path | None = None
    username: str | None = None
    password_file: Path | None = None

    def __post_init__(self) -> None:
        is_sasl = self.security.startswith("sasl_")
        if is_sasl != (self.username is not None) or is_sasl != (self.password_file is not None):
            rule = "needs both username and password_file" if is_sasl else "takes neither username nor password_file"
            raise KafkaError(f"kafka: security = {self.security!r} {rule}.")
        if self.ca_file is not None and not self.security.endswith("ssl"):
            raise KafkaError(f"kafka: security = {self.security!r} takes no ca_file.")


def options(connection: Connection) -> dict[str, Any]:
    """Returns kafka-python's settings, which every kind of its clients takes. They hold the password: don't log them.

    Raises:
        KafkaError: the CA file or the password file can't be used.
    """
    settings: dict[str, Any] = {
        "bootstrap_servers": [server.strip() for server in connection.bootstrap.split(",")],
        "security_protocol": connection.security.upper(),
        "client_id": "sottovoce",
        "bootstrap_timeout_ms": TIMEOUT_SECONDS * 1000,
        # From 30 s: a broker that was away for moments is found again soon.
        "reconnect_backoff_max_ms": 1000,
    }
    if connection.security.endswith("ssl"):
        settings["ssl_context"] = _tls(connection.ca_file)
    if connection.username is not None and connection.password_file is not None:
        settings["sasl_mechanism"] = SASL_MECHANISM
        settings["sasl_plain_username"] = connection.username
        settings["sasl_plain_password"] = _password(connection.password_file)
    return settings


def _tls(ca_file: Path | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca_file)
    except OSError as error:  # ssl.SSLError is one
        reason = "no PEM certificates in it" if isinstance(error, ssl.SSLError) else error.strerror
        raise KafkaError(f"kafka: ca_file = {ca_file}: can't be used ({reason}).") from error


def _password(path: Path) -> str:
    try:
        password = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not text"
        raise KafkaError(f"kafka: password_file = {path}: can't be read ({reason}).") from error
    if not password:
        raise KafkaError(f"kafka: password_file = {path}: is empty.")
    return password


@contextlib.contextmanager
def consumer(connection: Connection, **more: Any) -> Iterator[kafka.KafkaConsumer]:
    """A consumer that commits nothing by itself; `more` are settings of kafka-python's.

    Raises:
        KafkaError: whatever kafka-python raised, here or in the body of the `with`, in our words.
    """
    given = {"enable_auto_commit": False, "allow_auto_create_topics": False, **more}
    with explained(connection), contextlib.closing(kafka.KafkaConsumer(**options(connection), **given)) as client:
        yield client


@contextlib.contextmanager
def producer(connection: Connection, **more: Any) -> Iterator[kafka.KafkaProducer]:
    """An idempotent producer, acks from all. `more`, errors: as `consumer`.

    On leaving, each message is delivered or its future says why not.
    """
    given = {"acks": "all", "compression_type": "lz4", "allow_auto_create_topics": False, **more}
    with explained(connection):
        client = kafka.KafkaProducer(**options(connection), **given)
        try:
            yield client
            client.flush()
        finally:
            client.close(timeout=0)


def send(client: kafka.KafkaProducer, topic: str, messages: Iterable[Mapping[str, Any]]) -> int:
    """Sends messages and waits until the broker has them all; returns how many.

    Args:
        messages: what kafka-python's `send` takes beside the topic.

    Raises:
        kafka.errors.KafkaError: why one of them was refused.
    """
    sent = 0
    given = iter(messages)
    # The client's own buffer has no bound.
    while futures := [client.send(topic, **message) for message in itertools.islice(given, _SEND_AT_ONCE)]:
        client.flush()
        for future in futures:
            future.get(timeout=0)
        sent += len(futures)
    return sent


@contextlib.contextmanager
def admin(connection: Connection, **more: Any) -> Iterator[kafka.KafkaAdminClient]:
    """An administrator's client. `more`, errors: as `consumer`."""
    given = {"request_timeout_ms": TIMEOUT_SECONDS * 1000, **more}
    with explained(connection), contextlib.closing(kafka.KafkaAdminClient(**options(connection), **given)) as client:
        yield client


def partitions(connection: Connection, topic: str, operation: Operation) -> list[int]:
    """Returns the topic's partitions, in order, if the user may do the operation.

    Raises:
        KafkaError: no such topic, or not allowed: reading without a right to would wait for ever.
    """
    with admin(connection) as client:
        [found] = client.describe_topics([topic])
    error = kafka.errors.for_code(found["error_code"])
    allowed = found["authorized_operations"]  # None: a broker that doesn't tell
    if error is kafka.errors.UnknownTopicOrPartitionError:
        raise KafkaError(f"kafka: there is no topic {topic!r} on {connection.bootstrap}.")
    if error is kafka.errors.TopicAuthorizationFailedError or (allowed is not None and operation not in allowed):
        raise KafkaError(
            f"kafka: {_user(connection)} may not {operation} topic {topic!r} on {connection.bootstrap} (or it doesn't exist): "
            "the broker's ACLs."
        )
    if error is not kafka.errors.NoError:
        raise explain(connection, error(topic))
    return sorted(part["partition_index"] for part in found["partitions"])


def topic_offsets(connection: Connection, topic: str) -> dict[int, tuple[int, int]]:
    """Returns the first offset and the next one (the last plus 1) of each partition.

    Raises:
        KafkaError: the broker or the topic can't be read.
    """
    parts = [kafka.TopicPartition(topic, part) for part in partitions(connection, topic, "READ")]
    with consumer(connection) as client:
        begins = client.beginning_offsets(parts, timeout_ms=TIMEOUT_SECONDS * 1000)
        ends = client.end_offsets(parts, timeout_ms=TIMEOUT_SECONDS * 1000)
    return {part.partition: (begins[part], ends[part]) for part in parts}


def timestamp_type(connection: Connection, topic: str) -> Literal["CreateTime", "LogAppendTime"]:
    """Returns who stamps the topic's messages: their producer, or the broker on their arrival.

    Raises:
        KafkaError: no such topic, or the user may not ask (DESCRIBE_CONFIGS).
    """
    with admin(connection) as client:
        kind: Literal["CreateTime", "LogAppendTime"] = _settings(connection, client, topic)["message.timestamp.type"]
    return kind


def create_topic(connection: Connection, name: str, partitions: int, config: Mapping[str, str] | None = None) -> None:
    """Makes a topic, replicated as the broker does by default, and waits until it can be used.

    Args:
        config: settings of the topic, such as {"message.timestamp.type": "LogAppendTime"}.

    Raises:
        TopicExistsError: it is there already.
        KafkaError: a setting is wrong, or the user may not.
    """
    wanted = {name: {"num_partitions": partitions, "configs": dict(config or {})}}
    with admin(connection) as client:
        [made] = client.create_topics(wanted, raise_errors=False)["topics"]
        error = kafka.errors.for_code(made["error_code"])
        if error is kafka.errors.TopicAlreadyExistsError:
            raise TopicExistsError(f"kafka: topic {name!r} is there already on {connection.bootstrap}.")
        if error is not kafka.errors.NoError:
            raise explain(connection, error(f"topic {name!r}: {made['error_message'] or 'refused'}"))
        client.wait_for_topics([name])


def topic_settings(connection: Connection, name: str) -> dict[str, str] | None:
    """Returns a topic's settings by the broker's names, its defaults too; None: there is no such topic.

    Raises:
        KafkaError: the user may not ask (DESCRIBE_CONFIGS).
    """
    with admin(connection) as client:
        return _settings(connection, client, name) if name in client.list_topics() else None


def _settings(connection: Connection, client: kafka.KafkaAdminClient, topic: str) -> dict[str, Any]:
    asked = kafka.admin.ConfigResource(kafka.admin.ConfigResourceType.TOPIC, topic)
    found = client.describe_configs([asked], config_filter="all")["topic"].get(topic)
    if not found:  # kafka-python passes over why
        raise KafkaError(
            f"kafka: {_user(connection)} may not DESCRIBE_CONFIGS of topic {topic!r} on {connection.bootstrap} "
            "(or it doesn't exist): the broker's ACLs."
        )
    return {name: setting["value"] for name, setting in found.items()}


@contextlib.contextmanager
def explained(connection: Connection) -> Iterator[None]:
    """Raises what kafka-python raises in the body as a KafkaError that says what to mend."""
    start = time.time()
    try:
        yield
    except kafka.errors.KafkaError as error:
        raise explain(connection, error, since=start) from error


def explain(connection: Connection, error: kafka.errors.KafkaError, since: float | None = None) -> KafkaError:
    """Returns kafka-python's error in our words, its cause taken from the log since a time (`time.time()`)."""
    where = f"kafka: {connection.bootstrap}"
    # A producer that may write nowhere fails with a plain error that only names the other one.
    if isinstance(error, kafka.errors.AuthorizationError) or "AuthorizationFailedError" in str(error):
        return KafkaError(f"{where}: {_user(connection)} may not do this ({_short(str(error))}): the broker's ACLs.")
    if not isinstance(error, kafka.errors.KafkaTimeoutError | kafka.errors.KafkaConnectionError):
        return KafkaError(f"{where}: {_short(str(error))} ({type(error).__name__}).")
    causes = [text for when, text in list(_lost) if since is not None and when >= since]
    for sign, meaning in _MEANINGS.items():
        found = [cause for cause in causes if re.search(sign, f"{connection.security} {cause}")]
        if found:
            authorities = "the system" if connection.ca_file is None else f"ca_file = {connection.ca_file}"
            text = meaning.format(connection=connection, user=_user(connection), authorities=authorities)
            return KafkaError(f"{where}: {text} ({_short(found[-1])}).")
    detail = _short(causes[-1]) if causes else _short(str(error))
    return KafkaError(f"{where}: no broker answers; is it up, and is this its address? ({detail})")


# What a cause in kafka-python's log means, the most telling first: after a wrong password there are mere disconnections too,
# sometimes nothing else (it drops an answer that comes together with the end of the connection).
_BAD_LOGIN = "{user} or the password in {connection.password_file} is not right"
_HANGS_UP = "node_id=bootstrap.*socket disconnected"
_KNOWN_HANGS_UP = "node_id=bootstrap.*version=[(].*socket disconnected"
_MEANINGS = {
    "SaslAuthenticationFailed": _BAD_LOGIN,
    f"^sasl_.*{_KNOWN_HANGS_UP}": _BAD_LOGIN,
    _KNOWN_HANGS_UP: "the broker wants a login: security = {connection.security!r} doesn't fit",
    "SaslMechanism": f"the broker doesn't offer {SASL_MECHANISM}",
    "CERTIFICATE_VERIFY_FAILED": "the broker's certificate is not one that {authorities} vouches for",
    "SSL|Handshake failed": "the broker doesn't speak TLS there: security = {connection.security!r} doesn't fit",
    "InvalidReceiveError": "the broker speaks TLS there: security = {connection.security!r} doesn't fit",
    _HANGS_UP: "what listens there hangs up: security = {connection.security!r} may not fit",
}


def _user(connection: Connection) -> str:
    return "anyone" if connection.username is None else f"user {connection.username!r}"


def _short(cause: str) -> str:
    """An error's text, or a line of the log, without the names around it."""
    text = cause.rpartition("Connection lost: ")[2].partition(" (_ssl.c")[0]
    return re.sub(r"^(\[Error \d+\] )?(\w+Error: )*", "", text)


_lost: collections.deque[tuple[float, str]] = collections.deque(maxlen=20)


class _Listener(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        _lost.append((record.created, record.getMessage()))


logging.getLogger("kafka.net.connection").addHandler(_Listener(logging.ERROR))
