"""`sottovoce schedule`: the same job, again and again."""

import shlex
import signal
import subprocess
import sys
import time

import pytest

from pipelines import cli
from tests.pipelines.example import load, published, view, write_job

FLAGS = ["--window.size=7d", "--window.budget_share=0.2"]


def test_what_is_printed_runs_the_job_with_the_flags_it_was_given(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", "/srv/state")
    path = write_job(tmp_path, [view("ann", "a")])
    assert cli.main(["schedule", str(path), *FLAGS, "--job.name", "my job"]) == 0
    printed = capsys.readouterr().out
    line = printed.splitlines()[-1]
    assert line.startswith("0 0 * * wed cd ")
    words = shlex.split(line)[8:]
    assert words[:2] == ["env", "XDG_STATE_HOME=/srv/state"]
    assert words[2:] == [
        sys.executable,
        "-m",
        "pipelines.cli",
        "run",
        str(path),
        "--until",
        "now",
        *FLAGS,
        "--job.name",
        "my job",
    ]
    assert "sottovoce-my-job.timer" in printed
    assert "OnCalendar=Wed *-*-* 00:00:00 UTC" in printed


@pytest.mark.parametrize(
    ("name", "value"),
    [("SOTTOVOCE_MODEL__RANK", "7"), ("sottovoce_model__rank", "7"), ("SOTTOVOCE_SOURCE__PATHS", '["a.csv"]')],
    ids=["setting", "lower case", "JSON"],
)
def test_what_is_printed_carries_the_settings_of_the_environment(tmp_path, capsys, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    assert cli.main(["schedule", str(write_job(tmp_path, [])), *FLAGS]) == 0
    printed = capsys.readouterr().out
    in_unit = value.replace('"', '\\"')
    assert f'Environment="{name}={in_unit}"\n' in printed
    assert f"{name}={value}" in shlex.split(printed.splitlines()[-1])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SOTTOVOCE_PRIVACY__LEDGER", "postgresql+psycopg://ann:hush@db/ledger"),
        ("sottovoce_privacy__ledger", "postgresql+psycopg://ann:hush@db/ledger"),
        ("SOTTOVOCE_PRIVACY", '{"ledger": "postgresql+psycopg://ann:hush@db/ledger"}'),
        ("SOTTOVOCE_PSEUDONYM_KEY", "hush"),
    ],
    ids=["ledger", "lower case", "JSON", "key"],
)
def test_what_may_be_secret_is_named_and_not_printed(tmp_path, capsys, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    assert cli.main(["schedule", str(write_job(tmp_path, [])), *FLAGS]) == 0
    printed = capsys.readouterr().out
    assert "hush" not in printed
    assert printed.count(f"# May be secret and is not printed: {name}.") == 2
    assert "EnvironmentFile=/etc/sottovoce-test.env" in printed


def test_without_xdg_state_home_the_default_ledger_is_carried_all_the_same(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", "/home/ann")
    assert cli.main(["schedule", str(write_job(tmp_path, [])), *FLAGS]) == 0
    assert 'Environment="XDG_STATE_HOME=/home/ann/.local/state"\n' in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "a schedule is for jobs with windows"),
        ([*FLAGS, "--job.name=two\nlines"], "can't stand in a systemd unit"),
        ([*FLAGS, "--foreground", "--privacy.total_epsilon=-1"], "total_epsilon"),
    ],
    ids=["no windows", "line break", "wrong job"],
)
def test_what_can_not_be_scheduled_exits_with_2(tmp_path, capsys, flags, message):
    assert cli.main(["schedule", str(write_job(tmp_path, [])), *flags]) == 2
    assert message in capsys.readouterr().err


def test_the_foreground_releases_what_is_over_and_ends_when_told(tmp_path):
    path = write_job(tmp_path, [view("ann", "a", time="2025-01-02")])
    job = load(path, *FLAGS)
    command = [sys.executable, "-m", "pipelines.cli", "schedule", str(path), *FLAGS, "--foreground"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        for _ in range(600):
            if (tmp_path / "store" / "current.duckdb").exists() or process.poll() is not None:
                break
            time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "Traceback" not in errors
    assert len(published(job)) == 4
