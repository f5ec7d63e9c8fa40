"""No payload, privacy id or secret in any log, message or file but where docs/privacy.md says so."""

import logging
import pathlib
import tempfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data import store
from tests.pipelines import canaries, topics
from tests.pipelines.canaries import EVENTS, MALFORMED, MARK, OPTED_OUT, PASSWORD, Shell
from tests.pipelines.example import view, write_job
from transforms.ingest import decode

HELD_OUT = ["--evaluation.budget_share=0.1", "--cooccurrence.budget_share=0.7", "--evaluation.held_out_share=0.4"]
DAYS = ["--window.start=2025-01-09", "--window.size=2d", "--window.budget_share=0.5", "--window.max_windows_contributed=2"]
SHORT = ["--trending.size=1d", "--trending.budget_share=0.1"]


@pytest.fixture
def shell(capfd, tmp_path, monkeypatch) -> Shell:
    """With a state directory and temporary files of its own, which are searched too."""
    for name in ("state", "tmp"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    yield Shell(capfd)
    # What cli.main has set.
    logging.basicConfig(level=logging.WARNING, force=True)


def job_of(directory: pathlib.Path, lines=(*EVENTS, *MALFORMED), **more) -> pathlib.Path:
    path = write_job(directory, lines, **more)
    (directory / "opt_out.txt").write_text(f"{OPTED_OUT}\n")
    path.write_text(path.read_text().replace("[window]", f'opt_out = "{directory}/opt_out.txt"\n[window]'))
    return path


def found(directory: pathlib.Path, shell: Shell) -> list[str]:
    return canaries.found(directory, bytes.fromhex((directory / "pseudonym.key").read_text()), shell)


def codes(shell: Shell) -> list[int]:
    return [code for _, code, _ in shell.said]


def test_a_job_over_files_says_and_keeps_nothing_of_anybody(tmp_path, shell):
    job = job_of(tmp_path)
    for action in ("init", "show"):
        shell("budget", action, job, *HELD_OUT)
    for command in ("run", "run", "train", "publish", "evaluate", "status"):
        shell(command, job, *HELD_OUT)
    shell("evaluate", job, *HELD_OUT, "--format", "json")
    shell("status", job, *HELD_OUT, "--format", "json")
    shell("budget", "grant", job, *HELD_OUT, "--epsilon", "3e7", "--why", "a test")
    shell("release", job, *HELD_OUT, "--new-release")
    for action in ("history", "verify", "show"):
        shell("budget", action, job, *HELD_OUT)
    shell("models", "list", job, *HELD_OUT)
    shell("report", job, *HELD_OUT, "--output", tmp_path / "report.html")
    for table in ("item_counts", "items", "recommend(['a'], 5)", "release_report", "privacy_ledger", "evaluations"):
        shell("query", f"from {table}", "--format", "json")
    assert set(codes(shell)) == {0}
    assert found(tmp_path, shell) == []
    # The search has seen what there is to see.
    assert [path for path in tmp_path.glob("store/operator/dead_letters/*") if MARK in path.read_text()]
    assert any(path.suffix == ".duckdb" for path in tmp_path.rglob("*"))
    assert any("rows by outcome" in said for _, _, said in shell.said)


def test_windows_the_book_and_what_is_trending_say_nothing_of_anybody(tmp_path, shell):
    job = job_of(tmp_path)
    shell("budget", "init", job, *DAYS, *SHORT)
    for until in ("2025-01-11", "2025-01-13"):
        shell("run", job, *DAYS, *SHORT, "--until", until)
    shell("status", job, *DAYS, *SHORT)
    shell("budget", "verify", job, *DAYS, *SHORT)
    shell("schedule", job, *DAYS, *SHORT)
    assert set(codes(shell)) == {0}
    assert found(tmp_path, shell) == []
    assert any(path.is_file() for path in (tmp_path / "ledger.sqlite.book").rglob("*"))


def test_items_of_few_are_nowhere_where_there_is_events(tmp_path, shell):
    crowd = [line.replace(",a,", ",common,") for line in EVENTS for _ in range(1)]
    job = job_of(tmp_path, [*crowd, f",{canaries.USERS[0]},{MARK}-rare,view,,2025-01-10,"], epsilon=4.0, catalogue=False)
    shell("budget", "init", job)
    for command in ("run", "status"):
        shell(command, job)
    assert set(codes(shell)) == {0}
    assert found(tmp_path, shell) == []


def test_exact_figures_of_public_data_name_nobody(tmp_path, shell):
    job = job_of(tmp_path)
    for split in ("users", "time"):
        shell("evaluate", job, "--evaluation.data=public", "--split", split)
    shell("evaluate", job)
    assert codes(shell)[2] == 2
    assert found(tmp_path, shell) == []


@pytest.mark.parametrize(
    ("flags", "code"),
    [
        (["--source.max_malformed_share=0"], 5),
        (["--privacy.total_epsilon=9e7"], 7),
        (["--source.columns.privacy_id=user"], 3),
        (["--source.kind=parquet"], 3),
        (["--privacy.key_file", "{directory}/opt_out.txt"], 3),
        (["--privacy.opt_out", "{directory}/events.latin1"], 2),
        (["--catalogue.path", "{directory}/events.csv"], 3),
        (["--job.data_set=other"], 7),
    ],
    ids=["malformed", "budget", "column", "kind", "key", "opt-out", "catalogue", "no contract"],
)
def test_a_run_that_is_refused_quotes_nobody(tmp_path, shell, flags, code):
    job = job_of(tmp_path)
    (tmp_path / "events.latin1").write_bytes(f"{MARK}-\xe9\n".encode("latin1"))
    shell("budget", "init", job)
    shell("run", job, *(flag.format(directory=tmp_path) for flag in flags))
    shell("status", job)
    assert codes(shell)[1] == code, shell.said[1]
    assert found(tmp_path, shell) == []


@pytest.mark.parametrize("step", ["write_part", "finish", "show"])
def test_a_run_that_crashes_quotes_nobody(tmp_path, shell, step):
    job = job_of(tmp_path)
    shell("budget", "init", job)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store.Store, step, lambda *_: 1 / 0)
        shell("run", job)
    shell("run", job)
    assert codes(shell) == [0, 1, 0]
    assert "ZeroDivisionError" in shell.said[1][2]
    assert found(tmp_path, shell) == []


def test_a_damaged_file_is_named_without_what_is_in_it(tmp_path, shell):
    job = job_of(tmp_path, [])
    names = ("privacy_id", "item_id", "event_type", "event_id", "value", "event_time", "arrival_time")
    pq.write_table(
        pa.table({name: [f"{MARK}-{i}-{name}" for i in range(10_000)] for name in names}), tmp_path / "events.parquet"
    )
    content = bytearray((tmp_path / "events.parquet").read_bytes())
    content[1000:3000] = bytes(2000)
    (tmp_path / "events.parquet").write_bytes(content)
    flags = ["--source.kind=parquet", "--source.paths", f'["{tmp_path}/events.parquet"]']
    shell("budget", "init", job, *flags)
    shell("run", job, *flags)
    assert codes(shell) == [0, 3]
    assert found(tmp_path, shell) == []


def test_what_a_library_says_of_a_row_goes_no_further(tmp_path, shell, monkeypatch):
    """It may quote what it can't take."""

    def ask(decoder, query, batch):
        raise ValueError(f"can't take {batch.to_pylist()}")

    job = job_of(tmp_path)
    shell("budget", "init", job)
    monkeypatch.setattr(decode.Decoder, "_ask", ask)
    shell("run", job)
    shell("evaluate", job, "--evaluation.data=public")
    assert codes(shell) == [0, 1, 1]
    assert all("ValueError" in said for _, _, said in shell.said[1:])
    assert found(tmp_path, shell) == []


URL = f"postgresql+psycopg://{MARK}-login:{PASSWORD}@127.0.0.1:1/ledger"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SOTTOVOCE_PSEUDONYM_KEY", f"{MARK}-key"),
        ("SOTTOVOCE_PRIVACY__LEDGER", URL),
        ("SOTTOVOCE_PRIVACY__LEDGER", URL.replace(":1/", f":{PASSWORD}/")),
        ("SOTTOVOCE_PRIVACY__LEDGER", URL.replace("postgresql+psycopg", "nosql")),
        ("SOTTOVOCE_PRIVACY", f'{{"ledger": "{URL}"}}'),
        ("SOTTOVOCE_PRIVACY", f'{{"ledger": "{URL}"'),
        ("SOTTOVOCE_PRIVACY", f'{{"password": "{PASSWORD}"}}'),
    ],
)
def test_a_secret_in_the_environment_is_never_said(tmp_path, shell, monkeypatch, name, value):
    job = job_of(tmp_path)
    text = job.read_text().splitlines(keepends=True)
    job.write_text("".join(line for line in text if name != "SOTTOVOCE_PRIVACY__LEDGER" or not line.startswith("ledger")))
    monkeypatch.setenv(name, value)
    for words in (("budget", "init"), ("budget", "show"), ("run",), ("status",), ("schedule",)):
        shell(*words, job, "--window.size=1d")
    assert found(tmp_path, shell) == []
    assert set(codes(shell)) - {0}


def test_a_key_where_its_path_belongs_is_not_said(tmp_path, shell, monkeypatch):
    job = job_of(tmp_path)
    monkeypatch.setenv("SOTTOVOCE_PRIVACY__KEY_FILE", (tmp_path / "pseudonym.key").read_text().strip())
    shell("budget", "init", job)
    assert "key_file must name a file that holds the key" in shell.said[0][2]
    assert found(tmp_path, shell) == []


def of_topic(directory, broker) -> pathlib.Path:
    """The same events on a topic."""
    path, topic = topics.write_job(directory, broker)
    topics.load(path, *TOPIC)
    arrived = topics.milliseconds("2025-01-10T12:00")
    bad = [{"value": line.encode(), "key": MARK.encode(), "timestamp_ms": arrived + i} for i, line in enumerate(MALFORMED)]
    events = [topics.message(line.replace(",2025-01-10,", ",2025-01-10,2025-01-10T12:00")) for line in EVENTS]
    topics.send(broker, topic, [*bad, *events])
    # A stream closes a partition's window when something later comes.
    later = topics.message(view("", "a", "", "2025-01-12", "2025-01-12"))
    topics.send(broker, topic, [{**later, "partition": partition} for partition in range(3)])
    topics.send(broker, f"{topic}.consent", [{"key": OPTED_OUT.encode(), "value": b"what?"}])
    return path


TOPIC = ["--window.start=2025-01-10", "--window.end=2025-01-11", "--window.size=1d", "--window.budget_share=0.5"]


def test_a_scheduled_job_over_a_topic_says_nothing_of_anybody(tmp_path, shell, broker):
    job = of_topic(tmp_path, broker)
    for words in (("run", "--until", "2025-01-11"), ("status",), ("kafka", "init")):
        action = () if words[0] != "kafka" else words[1:]
        shell(words[0], *action, job, *TOPIC, *([] if action else words[1:]))
    assert set(codes(shell)) == {0}
    assert "count as opt-outs" in shell.said[0][2]
    assert found(tmp_path, shell) == []


def test_a_stream_says_nothing_of_anybody(tmp_path, shell, broker, flink_jars):
    job = of_topic(tmp_path, broker)
    shell("stream", job, *TOPIC, "--until", "2025-01-11")
    shell("status", job, *TOPIC)
    assert set(codes(shell)) == {0}
    assert found(tmp_path, shell) == []


# What would give somebody away, and must be found.


def a_row_in_the_log(patch):
    of = decode.Decoder.decode

    def telling(decoder, file, batch):
        logging.getLogger("transforms.ingest.decode").info("decoding %s", batch.slice(0, 1).to_pylist())
        return of(decoder, file, batch)

    patch.setattr(decode.Decoder, "decode", telling)


def a_pseudonym_in_the_log(patch):
    of = decode.Decoder.decode

    def telling(decoder, file, batch):
        decoded = of(decoder, file, batch)
        for pseudonym in decoded.events["privacy_id"].to_pylist():
            print(pseudonym.hex())
        return decoded

    patch.setattr(decode.Decoder, "decode", telling)


def an_id_in_a_published_table(patch):
    of = store.Store.write_part

    def telling(kept, attempt, name, table):
        return of(kept, attempt, name, table.replace_schema_metadata({"user": canaries.USERS[0]}))

    patch.setattr(store.Store, "write_part", telling)


def the_key_in_a_run_record(patch):
    of = decode.Decoder.__init__

    def telling(decoder, rules, key, *more):
        pathlib.Path(tempfile.gettempdir(), "record.json").write_text(key.hex())
        of(decoder, rules, key, *more)

    patch.setattr(decode.Decoder, "__init__", telling)


@pytest.mark.parametrize(
    ("mutate", "where"),
    [
        (a_row_in_the_log, "release "),
        (a_pseudonym_in_the_log, "release "),
        (an_id_in_a_published_table, "store/attempts/"),
        (the_key_in_a_run_record, "tmp/record.json"),
    ],
)
def test_the_search_finds_what_it_should(tmp_path, shell, monkeypatch, mutate, where):
    mutate(monkeypatch)
    job = job_of(tmp_path)
    shell("budget", "init", job)
    shell("release", job)
    assert codes(shell) == [0, 0]
    assert any(place.startswith(where) for place in found(tmp_path, shell)), found(tmp_path, shell)
