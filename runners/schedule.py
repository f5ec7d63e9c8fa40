"""When a job with windows runs: as a systemd timer, as a cron line, or here in the foreground.

A run that finds nothing to do costs little, so the times need not be those at which windows close: they only follow soon.
"""

import dataclasses
import datetime as dt
import logging
import os
import re
import shlex
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType

from apscheduler.schedulers import background
from apscheduler.triggers import cron

_MINUTE, _HOUR, _DAY, _WEEK = (dt.timedelta(**{unit: 1}) for unit in ("minutes", "hours", "days", "weeks"))
_WEEKDAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_PATIENCE_SECONDS = 60
"""How long a run that is told to stop may take."""
_POLL_SECONDS = 0.5
"""How soon a signal is acted on."""

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Cadence:
    """Times in UTC, to the minute.

    Attributes:
        minute: of the hour; the first one, where there is a `step`.
        step: minutes from one to the next, a divisor of 60; None: once an hour, a day or a week.
        hour: of the day, None: each.
        weekday: such as "mon", None: each.
    """

    minute: int
    step: int | None = None
    hour: int | None = None
    weekday: str | None = None

    @property
    def fields(self) -> dict[str, str]:
        """As cron has them: minute, hour and day_of_week."""
        minute = str(self.minute) if self.step is None else f"{self.minute}-59/{self.step}"
        return {"minute": minute, "hour": "*" if self.hour is None else str(self.hour), "day_of_week": self.weekday or "*"}

    @property
    def calendar(self) -> str:
        """As systemd has it (systemd.time, calendar events)."""
        weekday = f"{self.weekday.capitalize()} " if self.weekday else ""
        hour = "*" if self.hour is None else f"{self.hour:02}"
        step = "" if self.step is None else f"/{self.step}"
        return f"{weekday}*-*-* {hour}:{self.minute:02}{step}:00 UTC"


def cadence(start: dt.datetime, size: dt.timedelta, slack: dt.timedelta) -> Cadence:
    """The longest of some minutes, an hour, a day and a week that is no longer than a window, soon after windows close.

    Windows shorter than a minute are released some at a time.

    Args:
        start: of the first window, in UTC; window k ends at start + (k + 1) size.
        slack: after its end, until a window is closed.
    """
    closes = start + size + slack
    if closes.second or closes.microsecond:
        closes = closes.replace(second=0, microsecond=0) + _MINUTE
    if size < _HOUR:
        step = max(minutes for minutes in range(1, 60) if 60 % minutes == 0 and minutes * _MINUTE <= max(size, _MINUTE))
        return Cadence(closes.minute % step, step)
    if size < _DAY:
        return Cadence(closes.minute)
    if size < _WEEK:
        return Cadence(closes.minute, hour=closes.hour)
    return Cadence(closes.minute, hour=closes.hour, weekday=_WEEKDAYS[closes.weekday()])


def units(
    name: str,
    times: Cadence,
    command: Sequence[str],
    directory: Path,
    environment: Mapping[str, str] | None = None,
    secrets: Sequence[str] = (),
) -> str:
    """The text of a systemd service, which runs as who calls this, and its timer.

    Args:
        name: of the job; what can't stand in a unit's file name becomes "-".
        times: when it runs.
        command: its words.
        directory: where it runs.
        environment: variables that it is given.
        secrets: names of variables that it needs as well; their values are not printed.

    Raises:
        ValueError: a word, a variable or a directory that neither systemd nor cron can take.
    """
    name = re.sub(r"[^A-Za-z0-9:_.-]+", "-", name)
    program = " ".join(f'"{_quoted(word).replace("$", "$$")}"' for word in command)
    variables = "".join(f'Environment="{_assignment(*variable)}"\n' for variable in (environment or {}).items())
    if secrets:
        # systemd doesn't start a service whose file is missing.
        variables += (
            f"# May be secret and is not printed: {', '.join(secrets)}. Give it in this file, readable by root alone.\n"
            f"EnvironmentFile=/etc/sottovoce-{name}.env\n"
        )
    return f"""\
# /etc/systemd/system/sottovoce-{name}.service
[Unit]
Description=Sottovoce: release the windows of {name} that are over
[Service]
Type=oneshot
User={os.getuid()}
WorkingDirectory={_working_directory(directory)}
{variables}ExecStart={program}

# /etc/systemd/system/sottovoce-{name}.timer
[Unit]
Description=Sottovoce: {name}
[Timer]
OnCalendar={times.calendar}
Persistent=true
[Install]
WantedBy=timers.target
"""


def cron_line(
    times: Cadence,
    command: Sequence[str],
    directory: Path,
    environment: Mapping[str, str] | None = None,
    secrets: Sequence[str] = (),
) -> str:
    """The lines of a crontab, that of the command last; cron takes a bare % for the end of the line. Args as `units`.

    Raises:
        ValueError: as `units`.
    """
    fields = times.fields
    words = [f"{name}={value}" for name, value in (environment or {}).items()]
    needs = "".join(f': "${{{name}:?}}" && ' for name in secrets)
    program = f"cd {shlex.quote(str(directory))} && {needs}{shlex.join(['env', *words, *command] if words else command)}"
    comment = "# Times in UTC; a cron that ignores CRON_TZ (Debian's does) takes them for local ones.\n"
    if secrets:
        comment += f"# May be secret and is not printed: {', '.join(secrets)}. Set it in the crontab, above this.\n"
    line = _one_line(program).replace("%", r"\%")
    return f"{comment}CRON_TZ=UTC\n{fields['minute']} {fields['hour']} * * {fields['day_of_week']} {line}\n"


def _working_directory(directory: Path) -> str:
    text = _one_line(str(directory))
    if text != text.strip() or text.endswith("\\"):
        raise ValueError(
            f"{text!r} can't stand in a systemd unit: a directory must not start or end with a space, nor end with a backslash."
        )
    return text.replace("%", "%%")


def _assignment(name: str, value: str) -> str:
    if not re.fullmatch("[A-Za-z_][A-Za-z0-9_]*", name):
        raise ValueError(f"the variable {name!r} can't stand in a systemd unit: a name has letters, digits and _ alone.")
    return f"{name}={_quoted(value)}"


def _quoted(word: str) -> str:
    return _one_line(word).replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")


def _one_line(text: str) -> str:
    if not text.isprintable():
        raise ValueError(f"{text!r} has a character that can't stand in a systemd unit or a crontab.")
    return text


def run(times: Cadence, command: Sequence[str]) -> None:
    """Runs the command now and at each of the times, one run after the other, until SIGTERM; whatever its exit code is.

    Raises:
        KeyboardInterrupt: SIGINT came. A run that is under way was interrupted first, in either case.
    """
    runs = _Runs(command)
    scheduler = background.BackgroundScheduler(timezone=dt.UTC)
    scheduler.add_job(
        runs.run,
        cron.CronTrigger(**times.fields, timezone=dt.UTC),
        next_run_time=dt.datetime.now(dt.UTC),
        coalesce=True,
        max_instances=1,
        misfire_grace_time=None,
    )
    received: list[int] = []

    def note(number: int, _: FrameType | None) -> None:
        # No more than this: the main thread may hold any lock now.
        received.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        scheduler.start()
        while not received:
            time.sleep(_POLL_SECONDS)
        runs.stop()
        scheduler.shutdown()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if received[0] == signal.SIGINT:
        raise KeyboardInterrupt


class _Runs:
    """Runs of a command, each in a process of its own: what one leaves behind or breaks is not the next one's."""

    def __init__(self, command: Sequence[str]):
        self._command = command
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._is_over = False

    def run(self) -> None:
        with self._lock:
            if self._is_over:
                return
            # In a session of its own: a key pressed in the terminal comes to it through `stop` alone.
            self._process = subprocess.Popen(self._command, start_new_session=True)  # noqa: S603  ours, no shell
        code = self._process.wait()
        if code and not self._is_over:
            log.warning("the run ended with exit code %d; the schedule goes on", code)

    def stop(self) -> None:
        with self._lock:
            self._is_over = True
            process = self._process
        if process is not None and process.poll() is None:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(_PATIENCE_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
