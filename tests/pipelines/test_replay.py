"""Replays: what is sent is a function of the file, the settings and the seed; a real broker gets it so."""

import collections
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import kafka
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data import errors
from pipelines import cli, replay
from runners import background
from transforms.ingest import kafka_client

START = 1_700_000_000  # seconds since the epoch
EVENTS = 4000


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> pathlib.Path:
    """Events a second apart, not in order."""
    order = [i * 1237 % EVENTS for i in range(EVENTS)]
    table = pa.table(
        {
            "event_time": pa.array([(START + i) * 1_000_000 for i in order], pa.timestamp("us")),
            "user": [f"u{i % 50}" for i in order],
            "number": [float(i) for i in order],
        }
    )
    path = tmp_path_factory.mktemp("replay") / "events.parquet"
    pq.write_table(table, path, row_group_size=500)
    return path


def messages(file: pathlib.Path, partitions: int = 4, **settings) -> list[dict]:
    batches = replay.messages(replay.Replay(files=[file], topic="t", **settings), partitions)
    return [row for batch in batches for row in batch.to_pylist()]


def read(connection: kafka_client.Connection, topic: str) -> list[kafka.consumer.fetcher.ConsumerRecord]:
    """All of a topic's records, partition after partition."""
    found = []
    offsets = kafka_client.topic_offsets(connection, topic)
    with kafka_client.consumer(connection, auto_offset_reset="earliest") as consumer:
        consumer.assign([kafka.TopicPartition(topic, part) for part in offsets])
        while len(found) < sum(end for _, end in offsets.values()):
            for records in consumer.poll(1000, max_records=10_000).values():
                found += records
    return sorted(found, key=lambda record: (record.partition, record.offset))


@pytest.fixture(scope="module")
def plain(broker) -> kafka_client.Connection:
    return kafka_client.Connection(broker.bootstrap)


def test_every_event_is_sent_once_in_the_order_of_its_time(file):
    sent = messages(file)
    assert [json.loads(message["message"])["number"] for message in sent] == list(range(EVENTS))
    assert [message["arrival"] for message in sent] == [(START + i) * 1_000_000 for i in range(EVENTS)]
    first = {"event_time": "2023-11-14 22:13:20", "user": "u0", "number": 0}
    assert json.loads(sent[0]["message"]) == first
    counts = collections.Counter(message["partition"] for message in sent)
    assert sorted(counts) == [0, 1, 2, 3]
    assert min(counts.values()) > EVENTS / 4 * 0.85


def test_arrivals_are_late_by_less_than_the_disorder(file):
    sent = messages(file, disorder_seconds=60)
    arrivals = [message["arrival"] for message in sent]
    times = [(START + json.loads(message["message"])["number"]) * 1_000_000 for message in sent]
    delays = [arrival - at for arrival, at in zip(arrivals, times, strict=True)]
    assert arrivals == sorted(arrivals)
    assert times != sorted(times)
    assert 0 <= min(delays) < 1_000_000
    assert 59_000_000 < max(delays) < 60_000_000
    # 4000 uniform delays: 4 standard errors of the mean.
    assert abs(sum(delays) / EVENTS - 30e6) < 4 * 60e6 / 12**0.5 / EVENTS**0.5


def test_shares_are_as_asked(file):
    sent = messages(file, disorder_seconds=60, repeats=0.1, malformed=0.05, key="user")
    counts = collections.Counter(message["kind"] for message in sent)
    assert counts[replay.EVENT] == EVENTS
    # Each is chosen by itself: 4 standard deviations.
    for kind, share in ((replay.REPEAT, 0.1), (replay.MALFORMED, 0.05)):
        assert abs(counts[kind] - EVENTS * share) < 4 * (EVENTS * share * (1 - share)) ** 0.5
    copies = collections.Counter(message["message"] for message in sent if message["kind"] != replay.MALFORMED)
    assert sorted(set(copies.values())) == [1, 2]
    assert len(copies) == EVENTS
    for message in sent:
        if message["kind"] == replay.MALFORMED:
            assert (message["key"], message["partition"]) != (None, None)
            with pytest.raises(ValueError):  # noqa: PT011  whatever JSON calls it
                json.loads(message["message"])
        else:
            assert message["key"].decode() == json.loads(message["message"])["user"]
            assert (message["partition"] is None) == (message["kind"] == replay.EVENT)


def test_the_same_seed_gives_the_same_messages(file):
    settings = {"disorder_seconds": 60, "repeats": 0.1, "malformed": 0.1}
    first = messages(file, seed=1, **settings)
    assert first == messages(file, seed=1, **settings)
    assert first != messages(file, seed=2, **settings)


def test_csv_stays_text_and_json_lines_stay_as_they_are(tmp_path):
    (tmp_path / "a.csv").write_text('id,event_time,text\n007,2025-01-02T00:00:00Z,"say ""hi"", é"\n008,2025-01-01,\n')
    assert [json.loads(message["message"]) for message in messages(tmp_path / "a.csv")] == [
        {"id": "008", "event_time": "2025-01-01", "text": None},
        {"id": "007", "event_time": "2025-01-02T00:00:00Z", "text": 'say "hi", é'},
    ]
    lines = ['{"a/b~":  "k", "event_time": "2025-01-02T00:00:00+01:00"}', '{"event_time":"2025-01-01", "x":[1.50]}']
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    sent = messages(tmp_path / "a.jsonl", key="a/b~")
    assert [(message["message"].decode(), message["key"]) for message in sent] == [(lines[1], None), (lines[0], b"k")]


def test_numbers_read_as_ids_do_from_the_file(tmp_path):
    table = pa.table({"event_time": pa.array([0, 1, 2, 3], pa.timestamp("s")), "id": [12345.0, 1.5, float("nan"), None]})
    pq.write_table(table, tmp_path / "a.parquet")
    assert [re.search('"id":([^}]*)', str(message["message"]))[1] for message in messages(tmp_path / "a.parquet")] == [
        "12345",
        "1.5",
        "null",
        "null",
    ]


@pytest.mark.parametrize(
    ("name", "text", "settings", "match"),
    [
        ("a.csv", "event_time,x\n2025-01-01,1\nnever,2\n", {}, "row 2 has no time in 'event_time'"),
        ("a.jsonl", '{"time": 1}\n', {}, "row 1 has no time"),
        ("a.csv", "time,x\n2025-01-01,1\n", {}, 'column "event_time" not found'),
        ("a.csv", "event_time,x\n2025-01-01,1\n", {"key": "y"}, 'column "y" not found'),
        ("a.parquet", "no parquet", {}, "can't be read"),
        ("a.jsonl", "{broken\n", {}, "can't be read"),
        ("a.txt", "", {}, "files must all be of one kind among .parquet"),
        ("a.csv", "", {"repeats": 1.5}, r"repeats must be in 0\.\.1, not 1.5"),
        ("a.csv", "", {"speed": float("nan")}, "speed must be in"),
        ("a.csv", "", {"disorder_seconds": -1}, "disorder_seconds must be in"),
    ],
)
def test_what_can_not_be_sent_is_an_error(tmp_path, name, text, settings, match):
    (tmp_path / name).write_text(text)
    with pytest.raises(errors.UserError, match=match):
        messages(tmp_path / name, **settings)


def test_a_broker_gets_what_was_made(file, plain):
    settings = {"disorder_seconds": 60, "repeats": 0.1, "malformed": 0.05, "key": "user", "as_arrival": True}
    counts = replay.run(replay.Replay(files=[file], topic="made", create=3, **settings), plain)
    expected = messages(file, 3, **settings)
    assert counts == collections.Counter(message["kind"] for message in expected)
    found = read(plain, "made")
    assert {record.timestamp_type for record in found} == {0}  # CreateTime

    def shape(message: bytes, key: bytes | None, milliseconds: int) -> tuple:
        return milliseconds, message, key or b""

    assert sorted(shape(record.value, record.key, record.timestamp) for record in found) == sorted(
        shape(message["message"], message["key"], message["arrival"] // 1000) for message in expected
    )
    parts: dict[int, list[int]] = collections.defaultdict(list)
    for record in found:
        parts[record.partition].append(record.timestamp)
    assert all(stamps == sorted(stamps) for stamps in parts.values())
    # Firsts of a user are all in one partition, as the key says.
    repeated = collections.Counter(record.value for record in found)
    of_user = {(record.key, record.partition) for record in found if record.key and repeated[record.value] == 1}
    assert len(of_user) == 50


def test_a_broker_that_stamps_by_itself_is_named(file, plain):
    replay.run(replay.Replay(files=[file], topic="stamped", create=1), plain)
    assert {record.timestamp_type for record in read(plain, "stamped")} == {1}  # LogAppendTime
    with pytest.raises(kafka_client.KafkaError, match="'stamped' has LogAppendTime"):
        replay.run(replay.Replay(files=[file], topic="stamped", as_arrival=True), plain)


def test_speed_is_kept(file, plain):
    start = time.time()
    # The last comes 3999 seconds after the first.
    replay.run(replay.Replay(files=[file], topic="fast", create=1, speed=2000), plain)
    stamps = [record.timestamp / 1000 - start for record in read(plain, "fast")]
    for number in range(0, EVENTS, 500):
        # Never early; late by as much as a busy machine takes.
        assert number / 2000 <= stamps[number] + 0.002 < number / 2000 + 5


@pytest.mark.parametrize(
    ("topic", "bootstrap", "said"),
    [("nothing", None, "there is no topic 'nothing'"), ("events", "127.0.0.1:9", "no broker answers")],
)
def test_what_is_missing_is_said_soon(file, plain, capsys, topic, bootstrap, said):
    start = time.monotonic()
    arguments = ["replay", str(file), "--topic", topic, "--bootstrap", bootstrap or plain.bootstrap]
    assert cli.main(arguments) == errors.BadInputError.exit_code
    assert time.monotonic() - start < 10
    assert said in capsys.readouterr().err


def test_an_interrupted_replay_says_how_far_it_came(file, plain):
    kafka_client.create_topic(plain, "slow", 1)
    command = [sys.executable, "-m", "pipelines.cli", "replay", str(file), "--topic", "slow", "--speed", "20"]
    running = subprocess.Popen([*command, "--bootstrap", plain.bootstrap], stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + 30
    while not kafka_client.topic_offsets(plain, "slow")[0][1]:
        assert time.monotonic() < end
        time.sleep(0.1)
    running.send_signal(signal.SIGINT)
    said = running.communicate(timeout=20)[1]
    assert running.returncode == cli.INTERRUPTED
    assert re.search(r"slow: \d+ events sent.*\nsottovoce: interrupted\.$", said.strip()), said


@pytest.fixture
def free_port() -> int:
    return background.choose_ports("127.0.0.1", None)[0]


@pytest.mark.long
def test_up_and_down_and_the_trial_of_the_docs(kafka_jars, free_port, tmp_path):
    """Every command of docs/kafka.md, at another port and with fewer users."""
    root = pathlib.Path(__file__).parents[2]
    environment = {**os.environ, "PATH": f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"}
    environment["XDG_STATE_HOME"] = str(tmp_path / "state")

    def run(command: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            command, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, f"{command}\n{done.stderr}"
        return done

    text = (root / "docs" / "kafka.md").read_text()
    [block] = re.findall(r"```sh\n(.*?)```", text, flags=re.DOTALL)
    commands = [line.partition("  #")[0].strip() for line in block.splitlines()]
    assert [command.split()[1] for command in commands] == ["kafka", "synth", "replay", "kafka"]
    try:
        up = run(f"{commands[0]} --port {free_port}")
        assert up.stdout == f'bootstrap = "127.0.0.1:{free_port}"\n'
        again = run("sottovoce kafka up")
        assert (again.stdout, "is running already" in again.stderr) == (up.stdout, True)
        run(commands[1].replace("2000", "100"))
        sent = run(commands[2].replace("127.0.0.1:9092", f"127.0.0.1:{free_port}")).stderr
        assert re.search(r"events: \d+ events sent", sent)
        connection = kafka_client.Connection(f"127.0.0.1:{free_port}")
        offsets = kafka_client.topic_offsets(connection, "events")
        assert len(offsets) == 3
        assert "is down" in run(commands[3]).stderr
        assert "no Kafka is running" in run(commands[3]).stderr
        run("sottovoce kafka up")
        assert kafka_client.topic_offsets(connection, "events") == offsets
    finally:
        run("sottovoce kafka down")
