"""Jobs over a real topic: what counts, what is late, who has opted out, where malformed messages go."""

import datetime as dt
import json
import random
import shutil
import threading
import time

import numpy as np
import pytest
from kafka import admin as acl

from data import database, errors, store, tables
from pipelines import cli, config, evaluate_private, forget, release, train
from pipelines import kafka as job_topics
from runners import kafka
from tests.pipelines import example, topics
from tests.pipelines.example import charges, published, view
from transforms.ingest import dead_letters, kafka_client
from transforms.ingest import topics as reading
from transforms.privacy import noise

BAD = [b"\xff\xfe", b"", b"{", b'{"item_id": "a", "event_time": "2025-01-10"}', b'{"privacy_id": "u", "item_id": "a"}']


@pytest.fixture(autouse=True)
def without_noise(monkeypatch):
    """The exact integers before noise; those of counts are rounded, and their noise is far below one."""
    monkeypatch.setattr(noise, "draw", lambda source, size, noise_sd, grid_bits: np.zeros(size, np.int64))


def figures(job: config.Job) -> list[dict]:
    """Of each release in the job's store, in order, its counts above zero and its pairs, by key."""
    kept, found = store.Store(job.job.store), []
    for manifest in published(job):
        if not {"trending", "evaluation"}.isdisjoint(manifest["reports"]):
            continue
        items = kept.read_table(manifest, "items", tables.ITEMS).sort_by("position")["item_id"].to_pylist()
        counts = kept.read_table(manifest, "item_counts", tables.ITEM_COUNTS).to_pylist()
        pairs = kept.read_table(manifest, "item_pairs", tables.ITEM_PAIRS).to_pylist()
        found.append(
            {(row["item_id"], row["event_type"]): (row["users"], row["events"]) for row in counts if row["users"]}
            | {tuple(sorted((items[row["row"]], items[row["col"]]))): row["value"] for row in pairs if row["value"]}
        )
    return found


def outcomes(job: config.Job) -> list[dict[str, int]]:
    """What became of the messages of each release, in order."""
    kept = store.Store(job.job.store)
    return [kept.run_record(charge["attempt"])["outcomes"] for charge in charges(job)]


def short_figures(job: config.Job) -> dict[str, dict]:
    """Counts above zero of each short window, by its start."""
    kept, found = store.Store(job.job.store), {}
    for manifest in published(job):
        if "trending" in manifest["reports"]:
            rows = kept.read_table(manifest, "item_counts", tables.ITEM_COUNTS).to_pylist()
            found[manifest["window_start"]] = {
                (row["item_id"], row["event_type"]): (row["users"], row["events"]) for row in rows if row["users"]
            }
    return found


def until(day: int, hour: int = 0) -> dt.datetime:
    return dt.datetime(2025, 1, day, hour, tzinfo=dt.UTC)


def lines(n: int = 3000) -> list[str]:
    """Four days of events with repeats, out of order, some late, far too early or in the future; bounds bind."""
    chosen = random.Random(7)
    found = []
    for i in range(n):
        time_ = dt.datetime(2025, 1, 1) + dt.timedelta(minutes=chosen.randrange(4 * 24 * 60))
        delay = chosen.choice([0, 60, 3000, 3600, 7000, 20_000, 100_000, -200, -400])
        event = view(
            f"u{chosen.randrange(40)}",
            chosen.choice("aaabbcd"),
            f"e{chosen.randrange(n)}",
            time_.isoformat(),
            (time_ + dt.timedelta(seconds=delay)).isoformat(),
            chosen.choice(["view", "buy"]),
        )
        found += [event] * (1 + (i % 5 == 0))
    return found


DAYS = ["--window.size=1d", "--window.budget_share=0.05", "--window.slack_seconds=3600"]


SLIDING = [*DAYS, "--window.size=2d", "--window.every=1d", "--window.max_windows_contributed=2"]


@pytest.mark.parametrize("flags", [DAYS, SLIDING, DAYS[2:]], ids=["windows", "sliding, by the book", "one window"])
def test_the_same_events_from_a_file_and_from_a_topic_have_the_same_figures(broker, tmp_path, flags):
    by_file = example.load(example.write_job(tmp_path / "file", lines()), *flags)
    (tmp_path / "topic").mkdir()
    shutil.copy(tmp_path / "file" / "pseudonym.key", tmp_path / "topic")
    path, topic = topics.write_job(tmp_path / "topic", broker)
    by_topic = topics.load(path, *flags)
    topics.send(broker, topic, map(topics.message, lines()))
    for job in (by_file, by_topic):
        if job.window.size == "all":
            release.run(job)
        else:
            list(release.run_until(job, until(5, 1)))
    assert figures(by_topic) == figures(by_file)
    assert len(figures(by_topic)) == {"1d": 4, "2d": 3, "all": 1}[by_topic.window.size]


ASKING = ["--evaluation.budget_share=0.1", "--cooccurrence.budget_share=0.7", "--cooccurrence.max_items=9"]


def test_users_are_held_out_and_asked_of_a_topic_as_of_a_file(broker, tmp_path):
    chosen = random.Random(7)
    at = [f"2025-01-0{day}T{hour:02}:00" for day in (1, 2) for hour in range(24)]
    events = [
        view(f"u{chosen.randrange(60)}", chosen.choice("abcdefghi"), f"e{i}", at[i % 48], at[i % 48]) for i in range(1500)
    ]
    by_file = example.write_job(tmp_path / "file", events)
    (tmp_path / "topic").mkdir()
    shutil.copy(tmp_path / "file" / "pseudonym.key", tmp_path / "topic")
    by_topic, topic = topics.write_job(tmp_path / "topic", broker)
    for path in (by_file, by_topic):
        (path.parent / "items.csv").write_text("item_id,title,genre\n" + "".join(f"{item},,x\n" for item in "abcdefghi"))
    jobs = [example.load(by_file, *DAYS, *ASKING), topics.load(by_topic, *DAYS, *ASKING)]
    topics.send(broker, topic, map(topics.message, events))
    found = []
    for job in jobs:
        for _, release_id in release.run_until(job, until(3, 1)):
            train.run(job, release_id)
        found.append(evaluate_private.run(job, k=3, n_older=1))
    assert figures(jobs[1]) == figures(jobs[0])
    assert found[1].metrics == found[0].metrics
    assert found[0].facts["window_start"][:10] == found[1].facts["window_start"][:10] == "2025-01-02"
    assert list(found[0].metrics["recall"]) == ["popularity", "model 2", "model 1"]
    assert 3 < found[0].facts["users"]["value"] == found[1].facts["users"]["value"] < 30


def test_nobody_moves_what_others_count_for(broker, tmp_path):
    """By copied event ids, events far in the past and the future, repeats, and nonsense."""
    others = [view(f"u{i}", "abcd"[i % 4], f"e{i}", "2025-01-02T12:00", "2025-01-02T12:00") for i in range(40)]
    attack = [
        *(view("eve", item, f"e{i}", time, "2025-01-02T11:00") for i, (item, time) in enumerate(EVE)),
        *(view("eve", "a", f"e{i}", "2025-01-02T12:00", "2025-01-02T12:00") for i in range(40)),
    ]
    found = []
    for name, sent in (("without", others), ("with", [*attack, *others, *attack])):
        path, topic = topics.write_job(tmp_path / name, broker)
        job = topics.load(path, *DAYS)
        nonsense = [{"value": b"eve", "timestamp_ms": topics.milliseconds(time)} for _, time in EVE[1:4]] * (name == "with")
        topics.send(broker, topic, [*nonsense, *map(topics.message, sent)])
        list(release.run_until(job, until(3, 1)))
        found.append(figures(job)[1])
    without, attacked = found
    eves = {("a", "view"): (1, 2), ("a", "a"): 1.0}
    assert {key: value for key, value in attacked.items() if key not in eves} == {
        key: value for key, value in without.items() if key not in eves
    }
    for key, share in eves.items():
        assert np.all(np.abs(np.subtract(attacked[key], without[key])) <= share)


EVE = [("a", "0001-01-05"), ("b", "1970-01-02"), ("c", "2025-01-01T23:59:59"), ("d", "2025-01-03"), ("a", "9999-12-29")]
"""What Eve says that she did, and when."""


def test_late_messages_go_to_their_topic_each_once_as_they_came(broker, tmp_path):
    """Those of the opted-out, and such as no window is for, don't."""
    path, topic = topics.write_job(tmp_path, broker)
    job = topics.load(path, *DAYS)
    times = [
        ("2025-01-01T12:00", "2025-01-01T13:00"),
        ("2025-01-01T12:00", "2025-01-02T01:00:01"),
        ("2024-12-30", "2025-01-03"),
    ]
    times += [("2025-01-01T23:00", "2025-01-03T12:00"), ("2025-01-03T12:00", "2025-01-03T12:00")]
    for user in ("ann", "bob"):
        sent = (topics.message(view(user, "a", f"{i}", *each)) for i, each in enumerate(times))
        topics.send(broker, topic, ({**message, "key": user.encode(), "partition": 0} for message in sent))
    topics.send(broker, f"{topic}.consent", [{"key": b"bob", "value": OPT_OUT}])
    for day in (2, 3, 4):
        list(release.run_until(job, until(day, 1)))
    late = topics.read(broker, f"{topic}.late")
    assert [(record.key, json.loads(record.value)["event_id"]) for record in late] == [(b"ann", "1"), (b"ann", "3")]
    assert [dict(record.headers)["reason"] for record in late] == [b"late"] * 2
    assert topics.read(broker, f"{topic}.dead") == []
    records = [store.Store(job.job.store).run_record(charge["attempt"]) for charge in charges(job)]
    assert [(record["outcomes"].get("late", 0), record["dead_letters"]) for record in records] == [(0, 0), (1, 0), (1, 0)]


def test_malformed_messages_go_to_their_topic_each_once_as_they_came(broker, tmp_path):
    path, topic = topics.write_job(tmp_path, broker)
    job = topics.load(path, *DAYS)
    for day in (1, 2, 3):
        arrived = topics.milliseconds(f"2025-01-0{day}T12:00")
        topics.send(broker, topic, [{"value": bad, "key": b"k", "timestamp_ms": arrived + i} for i, bad in enumerate(BAD)])
        list(release.run_until(job, until(day + 1, 1)))
    letters = topics.read(broker, f"{topic}.dead")
    sent = {(record.partition, record.offset): record.value for record in topics.read(broker, topic)}
    found = [(dict(letter.headers), letter.key, letter.value) for letter in letters]
    places = [(int(headers["partition"]), int(headers["offset"])) for headers, _, _ in found]
    assert sorted(places) == sorted(sent)
    assert all(value == sent[place] and key == b"k" for place, (_, key, value) in zip(places, found, strict=True))
    assert {headers["topic"] for headers, _, _ in found} == {topic.encode()}
    reasons = {value: headers["reason"].decode() for headers, _, value in found}
    assert list(map(reasons.get, BAD)) == [
        "not UTF-8",
        "not a JSON object",
        "not a JSON object",
        "privacy_id is missing",
        "event_time is missing",
    ]


def test_a_broker_that_dies_in_the_middle_loses_no_event(kafka_jars, tmp_path, monkeypatch):
    """`make drill` has the long one."""
    with kafka.Broker(tmp_path / "kafka") as dying:
        path, topic = topics.write_job(tmp_path, dying)
        job = topics.load(path, *DAYS)
        sent = [view(f"u{i}", "a", f"e{i}", "2025-01-01T12:00", "2025-01-01T12:00") for i in range(3000)]
        topics.send(dying, topic, map(topics.message, sent), batch_size=1000)
        # The client has no more than a little in hand when the broker dies.
        monkeypatch.setattr(reading, "FETCH", {**reading.FETCH, "fetch_max_bytes": 10_000, "max_partition_fetch_bytes": 10_000})
        monkeypatch.setattr(reading, "BATCH_ROWS", 100)
        rows, starting = reading.rows, []

        def kill_first(*arguments):
            if not starting:
                dying.kill()
                starting.append(threading.Timer(2, dying.start))
                starting[0].start()
            return rows(*arguments)

        monkeypatch.setattr(reading, "rows", kill_first)
        list(release.run_until(job, until(2, 1)))
        starting[0].join()
    assert figures(job)[0][("a", "view")] == (3000, 3000)


@pytest.mark.parametrize("step", ["before", "after"])
def test_letters_of_a_run_that_crashed_are_sent_once_by_the_next(broker, tmp_path, monkeypatch, step):
    path, topic = topics.write_job(tmp_path, broker)
    job = topics.load(path, *DAYS)
    topics.send(broker, topic, [{"value": b"{", "timestamp_ms": topics.milliseconds("2025-01-01T12:00")}])
    send = dead_letters.send

    def crash(*arguments):
        if step == "after":
            send(*arguments)
        raise ZeroDivisionError

    with monkeypatch.context() as crashing:
        crashing.setattr(dead_letters, "send", crash)
        with pytest.raises(ZeroDivisionError):
            list(release.run_until(job, until(2, 1)))
    assert len(published(job)) == 1
    for _ in range(2):
        list(release.run_until(job, until(2, 1)))
    assert len(topics.read(broker, f"{topic}.dead")) == 1


def test_letters_that_are_not_sent_yet_outlast_the_retention(broker, tmp_path, monkeypatch):
    path, topic = topics.write_job(tmp_path, broker)
    job = topics.load(path, *DAYS, "--privacy.retention=1s")
    topics.send(broker, topic, [{"value": b"{", "timestamp_ms": topics.milliseconds("2025-01-01T12:00")}])
    with monkeypatch.context() as crashing:
        crashing.setattr(dead_letters, "send", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            list(release.run_until(job, until(2, 1)))
    time.sleep(1.1)
    release.expire(job)
    list(release.run_until(job, until(2, 1)))
    assert len(topics.read(broker, f"{topic}.dead")) == 1
    time.sleep(1.1)
    release.expire(job)
    assert store.Store(job.job.store).letter_files() == {}


def test_late_events_are_counted_once_each_and_count_for_nothing(broker, tmp_path):
    path, topic = topics.write_job(tmp_path, broker)
    job = topics.load(path, *DAYS)
    arrivals = ["2025-01-02T00:59:59", "2025-01-02T01:00:01", "2025-01-02T23:00", "2025-01-03T00:30", "2025-01-03T01:30"]
    topics.send(
        broker, topic, (topics.message(view("ann", "a", str(i), "2025-01-01T12:00", at)) for i, at in enumerate(arrivals))
    )
    list(release.run_until(job, until(4, 1)))
    assert [found.get("late", 0) for found in outcomes(job)] == [0, 3, 1]
    assert [found.get(("a", "view")) for found in figures(job)] == [(1, 1), None, None]


OPT_OUT = b'{"opted_out": true}'


def test_an_opt_out_takes_effect_in_every_window_not_yet_released(broker, tmp_path):
    path, topic = topics.write_job(tmp_path, broker)
    job = topics.load(path, *DAYS)
    sent = [view(user, "a", "", f"2025-01-0{day}T12:00", f"2025-01-0{day}T12:00") for user in ("ann", "bob") for day in (1, 2)]
    topics.send(broker, topic, map(topics.message, sent))
    list(release.run_until(job, until(2, 1)))
    topics.send(broker, f"{topic}.consent", [{"key": b"ann", "value": OPT_OUT}])
    list(release.run_until(job, until(3, 1)))
    assert [found[("a", "view")] for found in figures(job)] == [(2, 2), (1, 1)]


def test_who_is_forgotten_is_opted_out_by_the_topic_and_goes_from_letters_of_text(broker, tmp_path):
    path, topic = topics.write_job(tmp_path, broker)
    job = topics.load(path, *DAYS)
    sent = [view(user, "a", "", f"2025-01-0{day}T12:00", f"2025-01-0{day}T12:00") for user in ("ann", "bob") for day in (1, 2)]
    topics.send(broker, topic, map(topics.message, sent))
    at = topics.milliseconds("2025-01-01T13:00")
    topics.send(broker, topic, ({"value": b'{"privacy_id": "%s"' % user, "timestamp_ms": at} for user in (b"ann", b"bob")))
    list(release.run_until(job, until(2, 1)))
    done = forget.run(job, ["ann"])
    assert done[0].startswith("opted out: 1 of 1")
    assert done[1].startswith("deleted: 1 dead letter(s)")
    assert done[-1].startswith("not reached: the broker's topics, until their retention")
    list(release.run_until(job, until(3, 1)))
    assert [found[("a", "view")] for found in figures(job)] == [(2, 2), (1, 1)]


def test_a_statement_that_names_nobody_stops_the_job_unspent(broker, tmp_path):
    path, topic = topics.write_job(tmp_path, broker)
    job = topics.load(path, *DAYS)
    topics.send(broker, topic + ".consent", [{"key": b"\xff", "value": OPT_OUT}])
    with pytest.raises(kafka_client.KafkaError, match="names nobody"):
        list(release.run_until(job, until(2, 1)))
    assert charges(job) == []


def test_what_an_aborted_transaction_sent_counts_for_nothing(broker, tmp_path):
    path, topic = topics.write_job(tmp_path, broker)
    job = topics.load(path, *DAYS)
    with kafka_client.producer(topics.connection(broker), transactional_id=topic) as producer:
        producer.init_transactions()
        for item, ends in (("a", producer.abort_transaction), ("b", producer.commit_transaction)):
            producer.begin_transaction()
            for i in range(100):
                producer.send(topic, **topics.message(view(f"u{i}", item, "", "2025-01-01T12:00", "2025-01-01T12:00")))
            producer.flush()
            ends()
    list(release.run_until(job, until(2, 1)))
    assert {key for key in figures(job)[0] if key[1] == "view"} == {("b", "view")}


def test_a_key_can_be_the_privacy_id(broker, tmp_path):
    path, topic = topics.write_job(tmp_path, broker)
    job = topics.load(path, *DAYS, "--source.columns.privacy_id", "__key")
    sent = topics.message(view("", "a", "", "2025-01-01T12:00", "2025-01-01T12:00"))
    topics.send(broker, topic, ({**sent, "key": key} for key in (b"ann", b"bob", b"bob", b"\xff", None)))
    list(release.run_until(job, until(2, 1)))
    assert figures(job)[0][("a", "view")] == (2, 3)
    assert outcomes(job)[0] == {"ok": 3, "not UTF-8": 1, "privacy_id is missing": 1}


def test_windows_follow_the_brokers_clock(broker, tmp_path):
    """What was sent in a window is in that one, whatever time its producer gave it."""
    start = dt.datetime.now(dt.UTC).replace(microsecond=0)
    end = start + dt.timedelta(seconds=6)
    path, topic = topics.write_job(tmp_path, broker, create_time=False)
    flags = ["--window.size=2s", "--window.budget_share=0.05", "--window.slack_seconds=1"]
    job = topics.load(path, *flags, f"--window.start={start.isoformat()}", f"--window.end={end.isoformat()}")
    sent = []
    while (now := dt.datetime.now(dt.UTC)) < end:
        topics.send(broker, topic, [topics.message(view(f"u{len(sent)}", "a", "", now.isoformat()[:-6], "2001-01-01"))])
        sent.append((now - start).seconds // 2)
        time.sleep(0.3)
    time.sleep(1.1)
    list(release.run_until(job, dt.datetime.now(dt.UTC)))
    assert [found[("a", "view")] for found in figures(job)] == [(sent.count(i), sent.count(i)) for i in range(3)]


def test_producers_times_are_refused(broker, tmp_path):
    path, topic = topics.write_job(tmp_path, broker)
    job = topics.load(path, *DAYS)
    topics.send(broker, topic, [topics.message(view("ann", "a", "", "2025-01-01T12:00", "2025-01-01T12:00"))])
    strict = job.model_copy(update={"kafka": job.kafka.model_copy(update={"allow_create_time": False})})
    with pytest.raises(kafka_client.KafkaError, match="have their producers' times"):
        list(release.run_until(strict, until(2, 1)))
    assert charges(job) == []


def test_a_published_version_is_sent_item_by_item(broker, tmp_path):
    path, topic = topics.write_job(tmp_path, broker)
    topics.load(path, *DAYS)
    sent = [view(f"u{i}", item, "", "2025-01-01T12:00", "2025-01-01T12:00") for i in range(30) for item in "abc"]
    topics.send(broker, topic, map(topics.message, sent))
    assert cli.main(["run", str(path), "--until", "2025-01-02T01:00", *DAYS]) == 0
    messages = {record.key.decode(): json.loads(record.value) for record in topics.read(broker, f"{topic}.recommendations")}
    with database.connect(tmp_path / "store") as connection:
        rows = connection.sql("select item_id, recommended_item_id, rank, score from recommendations").fetchall()
    told = {
        (item, each["item_id"], each["rank"], each["score"])
        for item, given in messages.items()
        for each in given["recommended"]
    }
    assert told == set(rows)
    assert {(item, given["item_id"], given["version"]) for item, given in messages.items()} == {
        (item, item, 1) for item in messages
    }
    assert cli.main(["publish", str(path), *DAYS]) == 0
    assert len(topics.read(broker, f"{topic}.recommendations")) == len(messages), "the same model was sent again"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--kafka.bootstrap=127.0.0.1:1"], "no broker answers"),
        (["--source.topic=nothing"], "there is no topic 'nothing'"),
        (["--kafka.consent=nothing"], "there is no topic 'nothing'"),
    ],
)
def test_what_can_not_be_reached_is_told_within_ten_seconds_and_unspent(broker, tmp_path, capsys, flags, message):
    path, _ = topics.write_job(tmp_path, broker)
    job = topics.load(path, *DAYS)
    start = time.monotonic()
    assert cli.main(["run", str(path), "--until", "2025-01-02T01:00", *DAYS, *flags]) == errors.BadInputError.exit_code
    assert time.monotonic() - start < 10
    assert message in capsys.readouterr().err
    assert charges(job) == []


def test_topics_are_made_as_the_job_needs_them_and_made_once(broker, tmp_path):
    path, topic = topics.write_job(tmp_path, broker, create_time=False)
    job = topics.load(path, "--kafka.partitions=2", "--kafka.retention=3d")
    job_topics.init(job)
    connection = topics.connection(broker)
    settings = {name: kafka_client.topic_settings(connection, topic + name) for name in ("", ".dead", ".consent")}
    assert settings[""]["message.timestamp.type"] == settings[".consent"]["message.timestamp.type"] == "LogAppendTime"
    assert settings[""]["retention.ms"] == settings[".dead"]["retention.ms"] == str(3 * 86_400_000)
    assert settings[".consent"]["cleanup.policy"] == "compact"
    assert kafka_client.partitions(connection, topic, "READ") == [0, 1]


def test_topics_that_are_there_and_do_not_do_are_named(broker, tmp_path):
    path, topic = topics.write_job(tmp_path, broker)
    job = topics.load(path)
    strict = job.model_copy(update={"kafka": job.kafka.model_copy(update={"allow_create_time": False})})
    with pytest.raises(config.JobFileError, match=rf"{topic} \(events\) has message.timestamp.type = CreateTime"):
        job_topics.init(strict)


def test_a_retention_too_short_for_a_window_is_told(broker, tmp_path, caplog):
    path, _ = topics.write_job(tmp_path, broker)
    topics.load(path, *DAYS, "--kafka.retention=25h")
    assert "shorter than the 1 day, 1:05:00" in caplog.text
    caplog.clear()
    topics.load(path, *DAYS, "--kafka.retention=26h")
    assert caplog.text == ""


def allow(running, user: str, rights: list[tuple[str, str, str]]) -> None:
    """Lets a user do (operation) with a (kind of) resource of that name."""
    granted = [
        acl.ACL(
            f"User:{user}",
            "*",
            acl.ACLOperation[operation],
            acl.ACLPermissionType.ALLOW,
            acl.ResourcePattern(acl.ResourceType[kind], name),
        )
        for kind, operation, name in rights
    ]
    with kafka_client.admin(topics.connection(running)) as admin:
        admin.create_acls(granted)


RIGHTS = [
    ("TOPIC", "READ", ""),
    ("TOPIC", "READ", ".consent"),
    ("TOPIC", "READ", ".items"),
    ("TOPIC", "WRITE", ".dead"),
    ("TOPIC", "WRITE", ".late"),
    ("TOPIC", "WRITE", ".recommendations"),
    ("GROUP", "READ", None),
    ("TRANSACTIONAL_ID", "WRITE", None),
]


@pytest.mark.parametrize("missing", [None, *range(len(RIGHTS))])
def test_a_job_needs_the_rights_that_the_docs_name_and_no_more(secure_broker, tmp_path, capsys, missing):
    """With TLS, a login and ACLs. READ and WRITE imply DESCRIBE."""
    admin = topics.connection(secure_broker)
    path, topic = topics.write_job(tmp_path, secure_broker)
    items = topics.move_items(path, topic)
    topics.load(path, *DAYS, *topics.login(admin))
    topics.send(secure_broker, items, map(topics.item, "abc"))
    for right in RIGHTS:
        if missing is None or right != RIGHTS[missing]:
            kind, operation, name = right
            allow(secure_broker, "reader", [(kind, operation, f"sottovoce-{topic}" if name is None else topic + name)])
    sent = [view(f"u{i}", item, "", "2025-01-01T12:00", "2025-01-01T12:00") for i in range(30) for item in "abc"]
    topics.send(
        secure_broker,
        topic,
        [*map(topics.message, sent), {"value": b"{", "timestamp_ms": topics.milliseconds("2025-01-01T12:00")}],
    )
    reader = topics.login(topics.connection(secure_broker, "reader"))
    code = cli.main(["run", str(path), "--until", "2025-01-02T01:00", *DAYS, *reader, f"--kafka.group=sottovoce-{topic}"])
    told = capsys.readouterr().err
    if missing is None:
        assert code == 0, told
        assert len(topics.read(secure_broker, f"{topic}.dead")) == 1
    else:
        assert code == errors.BadInputError.exit_code
        assert "ACLs" in told
