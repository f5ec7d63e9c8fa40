"""Schedules: times, what systemd and cron are told, and real runs in the foreground."""

import contextlib
import datetime as dt
import os
import pathlib
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest
from apscheduler.triggers import cron

from runners import schedule

HOURLY = schedule.Cadence(5)
START = dt.datetime(2025, 1, 1, tzinfo=dt.UTC)  # a Wednesday


@pytest.mark.parametrize(
    ("size", "slack", "calendar", "fields"),
    [
        ({"seconds": 10}, 0, "*-*-* *:00/1:00 UTC", "0-59/1 * *"),
        ({"minutes": 15}, 0, "*-*-* *:00/15:00 UTC", "0-59/15 * *"),
        ({"minutes": 15}, 181, "*-*-* *:04/15:00 UTC", "4-59/15 * *"),
        ({"minutes": 7}, 0, "*-*-* *:01/6:00 UTC", "1-59/6 * *"),
        ({"minutes": 1}, 30, "*-*-* *:00/1:00 UTC", "0-59/1 * *"),
        ({"hours": 1}, 300, "*-*-* *:05:00 UTC", "5 * *"),
        ({"hours": 5}, 300, "*-*-* *:05:00 UTC", "5 * *"),
        ({"days": 1}, 2 * 3600, "*-*-* 02:00:00 UTC", "0 2 *"),
        ({"days": 3}, 0, "*-*-* 00:00:00 UTC", "0 0 *"),
        ({"weeks": 1}, 86400 + 59, "Thu *-*-* 00:01:00 UTC", "1 0 thu"),
    ],
)
def test_runs_come_soon_after_windows_close(size, slack, calendar, fields):
    times = schedule.cadence(START, dt.timedelta(**size), dt.timedelta(seconds=slack))
    assert (times.calendar, " ".join(times.fields.values())) == (calendar, fields)


@pytest.mark.parametrize("minutes", [1, 7, 15, 30, 60, 1440, 10080])
def test_a_run_follows_each_close_of_a_window_within_the_hour_or_the_window(minutes):
    size = dt.timedelta(minutes=minutes)
    times = schedule.cadence(START, size, dt.timedelta(seconds=90))
    trigger = cron.CronTrigger(**times.fields, timezone=dt.UTC)
    for k in range(1, 20):
        closes = START + k * size + dt.timedelta(seconds=90)
        assert trigger.get_next_fire_time(None, closes) - closes <= max(
            dt.timedelta(minutes=1), min(size, dt.timedelta(hours=1))
        )


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="NOT RUN: no systemd-analyze on this machine")
@pytest.mark.parametrize("times", [HOURLY, schedule.Cadence(1, 6), schedule.Cadence(0, hour=2, weekday="thu")])
def test_systemd_takes_the_calendar(times):
    subprocess.run(["systemd-analyze", "calendar", times.calendar], check=True, capture_output=True)


HARD = ["/opt/my python", "run", "50%.toml", 'quote"d', "$HOME", "back\\slash", "a'b"]


def test_cron_hands_the_words_over_as_they_are():
    comment, zone, line = schedule.cron_line(HOURLY, HARD, pathlib.Path("/srv/my 100%")).splitlines()
    assert comment.startswith("# Times in UTC; a cron that ignores CRON_TZ")
    assert zone == "CRON_TZ=UTC"
    program = line.removeprefix("5 * * * * ").replace(r"\%", "%")
    assert shlex.split(program) == ["cd", "/srv/my 100%", "&&", *HARD]


def test_a_unit_hands_the_words_over_as_they_are():
    text = schedule.units("shop", HOURLY, HARD, pathlib.Path("/srv/my 100%"))
    assert 'ExecStart="/opt/my python" "run" "50%%.toml" "quote\\"d" "$$HOME" "back\\\\slash" "a\'b"\n' in text
    assert "WorkingDirectory=/srv/my 100%%\n" in text
    assert "OnCalendar=*-*-* *:05:00 UTC\nPersistent=true\n" in text


VARIABLES = {"XDG_STATE_HOME": "/srv/my 100%", "SOTTOVOCE_SOURCE__COLUMNS": '{"a": "b\\\\c"}', "SOTTOVOCE_X": "$HOME's "}


def test_cron_hands_the_variables_over_as_they_are():
    line = schedule.cron_line(HOURLY, ["run"], pathlib.Path("/srv"), VARIABLES).splitlines()[-1]
    words = shlex.split(line.removeprefix("5 * * * * ").replace(r"\%", "%"))
    assert words == ["cd", "/srv", "&&", "env", *(f"{name}={value}" for name, value in VARIABLES.items()), "run"]


def test_a_unit_hands_the_variables_over_as_they_are():
    text = schedule.units("shop", HOURLY, ["run"], pathlib.Path("/srv"), VARIABLES)
    assert 'Environment="XDG_STATE_HOME=/srv/my 100%%"\n' in text
    assert 'Environment="SOTTOVOCE_SOURCE__COLUMNS={\\"a\\": \\"b\\\\\\\\c\\"}"\n' in text
    assert 'Environment="SOTTOVOCE_X=$HOME\'s "\n' in text


def test_a_secret_is_named_and_without_it_nothing_runs(tmp_path):
    service = schedule.units("shop", HOURLY, ["run"], pathlib.Path("/srv"), {}, ["KEY"])
    assert "# May be secret and is not printed: KEY." in service
    assert "\nEnvironmentFile=/etc/sottovoce-shop.env\n" in service
    _, comment, _, line = schedule.cron_line(HOURLY, ["touch", "ran"], tmp_path, {}, ["KEY"]).splitlines()
    assert comment.startswith("# May be secret and is not printed: KEY.")
    program = ["sh", "-c", line.removeprefix("5 * * * * ")]
    assert "KEY" in subprocess.run(program, capture_output=True, text=True, check=False).stderr
    assert not (tmp_path / "ran").exists()
    subprocess.run(program, env={**os.environ, "KEY": "x"}, check=True)
    assert (tmp_path / "ran").exists()


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="NOT RUN: no systemd-analyze on this machine")
def test_systemd_takes_the_units(tmp_path):
    text = schedule.units("shop", HOURLY, [sys.executable, *HARD], tmp_path, VARIABLES, ["KEY"])
    for part, kind in zip(text.split("\n\n"), ("service", "timer"), strict=True):
        (tmp_path / f"sottovoce-shop.{kind}").write_text(f"{part}\n")
    command = ["systemd-analyze", "verify", tmp_path / "sottovoce-shop.service"]
    assert subprocess.run(command, check=True, capture_output=True).stderr == b""


@pytest.mark.parametrize(
    ("name", "in_unit"),
    [("my job", "my-job"), ("a:b_c.d-1", "a:b_c.d-1"), ("größe/2 @ß", "gr-e-2-"), ("100%\\", "100-")],
    ids=["space", "allowed", "not ASCII", "escapes"],
)
def test_a_unit_is_named_with_what_systemd_allows(name, in_unit):
    text = schedule.units(name, HOURLY, ["run"], pathlib.Path("/srv"))
    assert f"# /etc/systemd/system/sottovoce-{in_unit}.service\n" in text
    assert f"# /etc/systemd/system/sottovoce-{in_unit}.timer\n" in text


def test_a_unit_runs_as_who_asked_for_it():
    assert f"\nUser={os.getuid()}\n" in schedule.units("x", HOURLY, ["run"], pathlib.Path("/srv"))


@pytest.mark.parametrize("directory", ["/srv/a\\", "/srv/a ", " srv"], ids=["backslash", "space after", "space before"])
def test_a_directory_that_systemd_would_cut_is_refused(directory):
    with pytest.raises(ValueError, match="must not start or end with a space, nor end with a backslash"):
        schedule.units("x", HOURLY, ["run"], pathlib.Path(directory))


def test_a_variable_that_systemd_would_pass_over_is_refused():
    with pytest.raises(ValueError, match="the variable 'SOTTOVOCE_A-B' can't stand in a systemd unit"):
        schedule.units("x", HOURLY, ["run"], pathlib.Path("/srv"), {"SOTTOVOCE_A-B": "1"})


@pytest.mark.parametrize(
    "write",
    [
        lambda word: schedule.cron_line(HOURLY, ["run"], pathlib.Path(), {"X": word}),
        lambda word: schedule.units("x", HOURLY, ["run"], pathlib.Path(), {"X": word}),
        lambda word: schedule.cron_line(HOURLY, [word], pathlib.Path()),
        lambda word: schedule.units("x", HOURLY, [word], pathlib.Path()),
    ],
)
def test_a_line_break_is_refused(write):
    with pytest.raises(ValueError, match="can't stand in a systemd unit or a crontab"):
        write("two\nlines")


RUN = "import pathlib, sys, time; pathlib.Path(sys.argv[1]).open('a').write('x'); time.sleep(float(sys.argv[2])); sys.exit(3)"
SLOW_TO_END = f"import time\ntry:\n    {RUN}\nexcept KeyboardInterrupt:\n    time.sleep(3)"
DEAF = f"import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); {RUN}"


def signal_after(marker: pathlib.Path, *numbers: int, runs: int = 1) -> None:
    """Half a second after so many runs have begun, sends these signals, a second apart."""

    def send():
        while not marker.exists() or len(marker.read_text()) < runs:
            time.sleep(0.05)
        time.sleep(0.5)
        for number in numbers:
            os.kill(os.getpid(), number)
            time.sleep(1)

    threading.Thread(target=send).start()


@pytest.mark.parametrize(
    ("numbers", "program", "seconds"),
    [
        ([signal.SIGTERM], RUN, 60),
        ([signal.SIGINT], RUN, 60),
        ([signal.SIGTERM], RUN, 0),
        ([signal.SIGTERM, signal.SIGINT], SLOW_TO_END, 60),
        ([signal.SIGINT, signal.SIGINT], SLOW_TO_END, 60),
        ([signal.SIGTERM], DEAF, 60),
    ],
    ids=["in a run", "interrupt", "between runs", "again while a run ends", "interrupt twice", "a run that won't end"],
)
def test_the_foreground_runs_at_once_and_ends_in_order(tmp_path, monkeypatch, numbers, program, seconds):
    monkeypatch.setattr(schedule, "_PATIENCE_SECONDS", 5)
    marker = tmp_path / "marker"
    signal_after(marker, *numbers)
    begun = time.monotonic()
    with pytest.raises(KeyboardInterrupt) if numbers[0] == signal.SIGINT else contextlib.nullcontext():
        schedule.run(HOURLY, [sys.executable, "-c", program, str(marker), str(seconds)])
    assert time.monotonic() - begun < 20
    assert marker.read_text() == "x"


FOREGROUND = """
import os, signal, sys
from apscheduler.schedulers import background
from runners import schedule

class Scheduler(background.BackgroundScheduler):
    def start(self):
        for step in sys.argv[1].split():
            super().start() if step == "start" else os.kill(os.getpid(), signal.SIGTERM)

background.BackgroundScheduler = Scheduler
schedule.run(schedule.Cadence(5), ["sleep", "60"])
"""


@pytest.mark.parametrize("order", ["signal start", "start signal", "signal start signal"])
def test_a_signal_at_the_start_ends_the_foreground_without_a_word(order):
    command = [sys.executable, "-c", FOREGROUND, order]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_run_that_fails_does_not_end_the_schedule(tmp_path):
    marker = tmp_path / "marker"

    class EachSecond(schedule.Cadence):
        @property
        def fields(self):
            return {"second": "*"}

    signal_after(marker, signal.SIGTERM, runs=2)
    schedule.run(EachSecond(0), [sys.executable, "-c", RUN, str(marker), "0"])
    assert len(marker.read_text()) >= 2
