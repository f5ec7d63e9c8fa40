"""Schedules: times, what systemd and cron are told, and real runs in the foreground."""

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
    zone, line = schedule.cron_line(HOURLY, HARD, pathlib.Path("/srv/my 100%")).splitlines()
    assert zone == "CRON_TZ=UTC"
    program = line.removeprefix("5 * * * * ").replace(r"\%", "%")
    assert shlex.split(program) == ["cd", "/srv/my 100%", "&&", *HARD]


def test_a_unit_hands_the_words_over_as_they_are():
    text = schedule.units("shop", HOURLY, HARD, pathlib.Path("/srv/my 100%"))
    assert 'ExecStart="/opt/my python" "run" "50%%.toml" "quote\\"d" "$$HOME" "back\\\\slash" "a\'b"\n' in text
    assert "WorkingDirectory=/srv/my 100%%\n" in text
    assert "OnCalendar=*-*-* *:05:00 UTC\nPersistent=true\n" in text


@pytest.mark.parametrize(
    "write",
    [
        lambda word: schedule.cron_line(HOURLY, [word], pathlib.Path()),
        lambda word: schedule.units("x", HOURLY, [word], pathlib.Path()),
    ],
)
def test_a_line_break_is_refused(write):
    with pytest.raises(ValueError, match="can't stand in a systemd unit or a crontab"):
        write("two\nlines")


RUN = "import pathlib, sys, time; pathlib.Path(sys.argv[1]).open('a').write('x'); time.sleep(float(sys.argv[2])); sys.exit(3)"


@pytest.mark.parametrize(("number", "seconds"), [(signal.SIGTERM, 60), (signal.SIGINT, 60), (signal.SIGTERM, 0)])
def test_the_foreground_runs_at_once_and_ends_in_order(tmp_path, number, seconds):
    marker = tmp_path / "marker"

    def stop():
        while not marker.exists():
            time.sleep(0.05)
        time.sleep(0.5)
        os.kill(os.getpid(), number)

    threading.Thread(target=stop).start()
    begun = time.monotonic()
    command = [sys.executable, "-c", RUN, str(marker), str(seconds)]
    if number == signal.SIGINT:
        with pytest.raises(KeyboardInterrupt):
            schedule.run(HOURLY, command)
    else:
        schedule.run(HOURLY, command)
    assert time.monotonic() - begun < 20
    assert marker.read_text() == "x"


def test_a_run_that_fails_does_not_end_the_schedule(tmp_path, monkeypatch):
    marker = tmp_path / "marker"

    class EachSecond(schedule.Cadence):
        @property
        def fields(self):
            return {"second": "*"}

    def stop():
        while not marker.exists() or len(marker.read_text()) < 2:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop).start()
    schedule.run(EachSecond(0), [sys.executable, "-c", RUN, str(marker), "0"])
    assert len(marker.read_text()) >= 2
