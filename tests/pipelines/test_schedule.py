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


def test_what_is_printed_runs_the_job_with_the_flags_it_was_given(tmp_path, capsys):
    path = write_job(tmp_path, [view("ann", "a")])
    assert cli.main(["schedule", str(path), *FLAGS, "--job.name", "my job"]) == 0
    printed = capsys.readouterr().out
    line = printed.splitlines()[-1]
    assert line.startswith("0 0 * * wed cd ")
    words = shlex.split(line)[8:]
    assert words == [sys.executable, "-m", "pipelines.cli", "run", str(path), "--until", "now", *FLAGS, "--job.name", "my job"]
    assert "sottovoce-my-job.timer" in printed
    assert "OnCalendar=Wed *-*-* 00:00:00 UTC" in printed


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
    with subprocess.Popen(command) as process:
        for _ in range(600):
            if (tmp_path / "store" / "current.duckdb").exists() or process.poll() is not None:
                break
            time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    assert len(published(job)) == 4
