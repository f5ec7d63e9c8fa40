import json
import os
import pathlib
import stat
import subprocess
import sys

import pyarrow.parquet as pq
import pytest

from data import store
from pipelines import cli, config, contract
from transforms.ingest import pseudonym

JOB = """\
[job]
name = "retail"
data_set = "shop"
store = "store"
[source]
kind = "csv"
paths = ["events.csv"]
columns = { privacy_id = "user", item_id = "item", event_time = "time" }
event_types = { view = 1.0 }
[privacy]
total_epsilon = 1.0
total_delta = 1e-6
expected_users = 4000
key_file = "user.key"
[window]
start = 2025-01-01
end = 2025-02-01
"""
HEADER = "user,item,time\n"


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch) -> pathlib.Path:
    """A directory with a job file, events and a key; nothing of the machine's user is read or written."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.delenv(pseudonym.KEY_VARIABLE, raising=False)
    (tmp_path / "job.toml").write_text(JOB)
    (tmp_path / "events.csv").write_text(HEADER + "ann,x,2025-01-02\nbob,x,2025-01-02\n")
    pseudonym.write_key(tmp_path / "user.key")
    assert cli.main(["budget", "init", "job.toml"]) == 0
    return tmp_path


def charges() -> list[dict]:
    return contract.open_ledger(config.load(pathlib.Path("job.toml"))[0]).releases("shop")


def run(capsys, *arguments: str) -> tuple[int, str]:
    """The exit code and the error message, which `main` prints as one paragraph without a traceback."""
    code = cli.main(arguments)
    shown = capsys.readouterr()
    assert shown.out == ""
    return code, shown.err[shown.err.find("sottovoce: ") :]


def usage_error(capsys, *arguments: str) -> str:
    """What argparse says on its way out."""
    with pytest.raises(SystemExit) as stopped:
        cli.main(arguments)
    assert stopped.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize("command", ["run", "release", "train", "publish"])
def test_a_wrong_key_exits_with_2(capsys, command):
    message = "sottovoce: job.toml:\n  model.rank = 0: Input should be greater than or equal to 1.\n"
    assert run(capsys, command, "job.toml", "--model.rank", "0") == (2, message)


@pytest.mark.parametrize("command", ["run", "release", "train", "publish"])
def test_a_missing_job_file_exits_with_2(capsys, command):
    message = "sottovoce: none.toml: can't be read (No such file or directory).\n"
    assert run(capsys, command, "none.toml") == (2, message)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        pytest.param(
            ["--source.paths", '["none*.csv"]'], "sottovoce: source.paths: no file matches 'none*.csv'.\n", id="no such file"
        ),
        pytest.param(
            ["--source.columns.value", "stars"],
            "sottovoce: events.csv has no column 'stars'. Set source.columns (ours = theirs); a CSV file's first line names "
            "its columns, with commas between.\n",
            id="no such column",
        ),
        pytest.param(
            ["--privacy.key_file", "none.key"],
            "sottovoce: privacy.key_file = none.key: can't be read (No such file or directory). "
            "`sottovoce key none.key` makes one.\n",
            id="no key",
        ),
        pytest.param(
            ["--privacy.key_file", "events.csv"],
            "sottovoce: privacy.key_file = events.csv: must be 64 hex digits. `sottovoce key FILE` makes such a file.\n",
            id="bad key",
        ),
    ],
)
def test_unusable_input_exits_with_3_and_spends_nothing(capsys, flags, message):
    assert run(capsys, "release", "job.toml", *flags) == (3, message)
    assert charges() == []


def test_a_missing_catalogue_exits_with_3(capsys):
    code, message = run(capsys, "release", "job.toml", "--catalogue.path", "none.csv")
    assert (code, "none.csv" in message) == (3, True)


def test_a_missing_opt_out_file_exits_with_2(capsys):
    message = (
        "sottovoce: privacy.opt_out = none.txt: can't be read (No such file or directory); give a file of one id a line.\n"
    )
    assert run(capsys, "release", "job.toml", "--privacy.opt_out", "none.txt") == (2, message)


@pytest.mark.parametrize(
    "flags",
    [
        pytest.param(["--source.event_types.view", "-1"], id="weight"),
        pytest.param(["--source.event_types.purchase", "1"], id="two types without a column"),
        pytest.param(["--source.min_value", "1"], id="min_value without a column"),
        pytest.param(["--source.weigh_by_value", "true"], id="weigh_by_value without a column"),
    ],
)
def test_settings_that_contradict_each_other_exit_with_2(capsys, flags):
    assert run(capsys, "release", "job.toml", *flags)[0] == 2


def test_a_release_whose_store_is_gone_exits_with_4(here, capsys):
    assert cli.main(["release", "job.toml"]) == 0
    (here / "store").rename(here / "elsewhere")
    capsys.readouterr()
    code, message = run(capsys, "release", "job.toml")
    assert (code, "put that store back" in message, "--new-release" in message) == (4, True, True)


def test_a_release_beyond_the_contract_exits_with_7_and_spends_nothing(capsys):
    code, message = run(capsys, "release", "job.toml", "--privacy.total_epsilon", "1.5")
    assert (code, "asks for" in message) == (7, True)
    assert charges() == []


def test_too_many_malformed_rows_exit_with_5_and_spend_nothing(here, capsys):
    (here / "events.csv").write_text(HEADER + "ann-the-user,x,2025-01-02\nbob-the-user,,2025-01-02\n")
    code, message = run(capsys, "release", "job.toml")
    kept = store.Store("store")
    [letters] = pathlib.Path(kept.operator("dead_letters")).iterdir()
    assert (code, message) == (
        5,
        "sottovoce: 50.00% of the rows are malformed, more than source.max_malformed_share = 1.00%; nothing was spent. "
        f"Dead letters (`sottovoce letters` shows them): {letters}\n",
    )
    assert [json.loads(line)["row"] for line in letters.read_text().splitlines()] == [2]
    assert charges() == []
    assert {path.name for path in here.joinpath("store").iterdir()} <= {"operator", ".running"}


def test_a_refused_release_shows_no_payload(here, capfd):
    (here / "events.csv").write_text(HEADER + "alice-the-user,secret-item,never\n" * 3)
    assert cli.main(["release", "job.toml"]) == 5
    shown = capfd.readouterr()
    assert "alice" not in shown.out + shown.err
    assert "secret" not in shown.out + shown.err
    letters = {path for path in (here / "store").rglob("*") if path.is_file() and b"alice" in path.read_bytes()}
    assert {path.parent for path in letters} == {here / "store/operator/dead_letters"}
    assert stat.S_IMODE((here / "store/operator").stat().st_mode) == 0o700


def test_before_a_release_train_exits_with_6(capsys):
    assert run(capsys, "train", "job.toml") == (6, "sottovoce: store holds no release yet: `sottovoce release` makes one.\n")


def test_before_training_publish_exits_with_6(capsys):
    assert run(capsys, "publish", "job.toml") == (6, "sottovoce: store holds no model yet: `sottovoce train` makes one.\n")


def test_before_anything_is_published_query_exits_with_6(capsys):
    message = "sottovoce: no store was published to yet on this machine; name one with --store.\n"
    assert run(capsys, "query", "select 1") == (6, message)


def test_a_query_waits_for_neither_beam_nor_the_ledgers_database():
    code = "import sys; from pipelines import cli; cli.main(['query', 'select 1']); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {"apache_beam", "sqlalchemy", "alembic"}.isdisjoint(done.stdout.split())
    assert "pipelines.query" in done.stdout.split()


def test_in_a_store_where_nothing_is_published_query_exits_with_6(capsys):
    assert run(capsys, "query", "select 1", "--store", "store")[0] == 6


@pytest.mark.parametrize("command", ["train", "publish"])
def test_commands_without_a_pipeline_refuse_beams_flags(capsys, command):
    message = "sottovoce: --runner=X --a b: this command runs no pipeline and takes only --section.key flags.\n"
    assert run(capsys, command, "job.toml", "--runner=X", "--model.rank", "8", "--a", "b") == (2, message)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param([], "arguments are required: COMMAND", id="no command"),
        pytest.param(["relase", "job.toml"], "invalid choice: 'relase'", id="unknown command"),
        pytest.param(["release"], "arguments are required: JOB.toml", id="no job file"),
        pytest.param(["query", "select 1", "--model.rank", "8"], "unrecognized arguments: --model.rank 8", id="query"),
        pytest.param(["query", "select 1", "--form", "csv"], "unrecognized arguments: --form csv", id="abbreviated"),
        pytest.param(["query", "select 1", "--format", "xml"], "invalid choice: 'xml'", id="format"),
        pytest.param(["key", "a.key", "--force"], "unrecognized arguments: --force", id="key"),
        pytest.param(["synth", "world", "--users", "many"], "invalid int value: 'many'", id="synth"),
    ],
)
def test_wrong_arguments_exit_with_2(here, capsys, arguments, message):
    assert message in usage_error(capsys, *arguments)
    assert not (here / "a.key").exists()


def test_flags_may_stand_before_the_job_file(capsys):
    assert run(capsys, "train", "--model.rank", "8", "job.toml")[0] == 6


@pytest.mark.parametrize("arguments", [["--model.rank", "-1"], ["--model.rank=-1"]], ids=["apart", "joined"])
def test_negative_values_reach_the_job_file(capsys, arguments):
    code, message = run(capsys, "release", "job.toml", *arguments)
    assert (code, "model.rank = -1" in message) == (2, True)


def test_key_writes_a_key_once(here, capsys):
    assert cli.main(["key", "new.key"]) == 0
    assert stat.S_IMODE((here / "new.key").stat().st_mode) == 0o600
    text = (here / "new.key").read_text()
    message = "sottovoce: new.key is there already: a new key would make every user a new one. Keep it.\n"
    capsys.readouterr()
    assert run(capsys, "key", "new.key") == (3, message)
    assert ((here / "new.key").read_text(), len(text.strip())) == (text, 64)


def test_synth_writes_a_world_and_a_valid_job_file(here):
    assert cli.main(["synth", "world", "--users", "200", "--items", "100", "--seed", "3"]) == 0
    job, _ = config.load(here / "world" / "job.toml")
    assert (job.job.data_set, job.privacy.expected_users, job.source.kind) == ("synthetic-3", 200, "parquet")
    assert pq.read_table(here / job.catalogue.path).num_rows == 100
    assert set(job.source.columns.values()) <= set(pq.read_table(here / "world" / "events").column_names)


def test_the_job_file_of_synth_finds_its_events(here):
    cli.main(["synth", "world", "--users", "200", "--items", "100"])
    [pattern] = config.load(here / "world" / "job.toml")[0].source.paths
    assert [path.name for path in here.glob(pattern)] == ["part-00000.parquet"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(["--items", "1"], "sottovoce: synth: World: items must be at least 100, not 1.", id="too few items"),
        pytest.param(["--users", "0"], "sottovoce: synth: World: users must be ", id="no users"),
    ],
)
def test_a_world_out_of_range_exits_with_2(capsys, arguments, message):
    code, shown = run(capsys, "synth", "world", *arguments)
    assert (code, shown[: len(message)]) == (2, message)


def test_a_key_that_cannot_be_written_exits_with_3(capsys):
    assert run(capsys, "key", "user.key/new.key")[0] == 3


@pytest.mark.parametrize("module", ["release", "train", "publish"])
def test_jobs_are_programs_with_help(module):
    done = subprocess.run([sys.executable, "-m", f"pipelines.{module}", "--help"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"usage: sottovoce {module} [-h]")
    assert "--section.key VALUE sets a key of the job file." in done.stdout


def test_a_program_shows_its_message_and_exit_code_without_a_traceback(here):
    command = [sys.executable, "-m", "pipelines.release", "none.toml"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=dict(os.environ))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1] == "sottovoce: none.toml: can't be read (No such file or directory)."
    assert "Traceback" not in done.stderr
