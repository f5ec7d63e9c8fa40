"""Processes in the background, that outlive the one that started them and are known by files in a directory."""

import contextlib
import dataclasses
import fcntl
import logging
import os
import re
import secrets
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

PATIENCE_SECONDS = 30
"""How long a process that is told to stop may take."""

_TAIL = 2000
_PORTS = range(20_000, 32_768)
"""Where free ports are looked for: not among those that Linux gives to whoever asks for any, such as other servers."""

# What Java needs, and what is started by it. Whoever starts a process may have secrets in others.
_INHERITED = re.compile(r"PATH|HOME|USER|LANG|LC_\w+|TZ|TMPDIR|LD_LIBRARY_PATH|XDG_CACHE_HOME|_?JAVA_\w+|JDK_JAVA_OPTIONS")

log = logging.getLogger(__name__)


class BackgroundError(RuntimeError):
    """A process in the background can't be started or stopped."""


class PortError(BackgroundError):
    """A port can't be used."""


def choose_ports(host: str, *wanted: int | None) -> list[int]:
    """Returns the wanted ports, once it is seen that they are free; for 0 and None any that is.

    Raises:
        PortError: one is not free, or no port.
    """
    with contextlib.ExitStack() as stack:
        listeners = [stack.enter_context(_listener(host, port)) for port in wanted]
        return [listener.getsockname()[1] for listener in listeners]


def _listener(host: str, wanted: int | None) -> socket.socket:
    reason: str | None = None
    for port in [wanted] if wanted else secrets.SystemRandom().sample(_PORTS, 100):
        try:
            return socket.create_server((host, port))
        except (OSError, OverflowError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not in 0..65535"
    raise PortError(f"port {wanted or 'of 100 tried'} can't be used ({reason}): choose another.")


def tail(file: Path) -> str:
    """Returns the end of a log; nothing where there is none."""
    if not file.exists():
        return ""
    with file.open("rb") as log_file:
        log_file.seek(max(0, log_file.seek(0, os.SEEK_END) - _TAIL))
        return log_file.read().decode(errors="replace")


@dataclasses.dataclass
class Process:
    """A process, in its directory's files: NAME.pid has its number, NAME.log what it says (NAME.log.1: the one
    before), and NAME.lock it holds locked.

    The lock ends with the process, however that is.
    """

    directory: Path
    name: str
    _process: subprocess.Popen[bytes] | None = dataclasses.field(default=None, init=False, repr=False)

    @property
    def log_file(self) -> Path:
        """What the process has to say."""
        return self.directory / f"{self.name}.log"

    @property
    def _lock_file(self) -> Path:
        return self.directory / f"{self.name}.lock"

    @property
    def _pid_file(self) -> Path:
        return self.directory / f"{self.name}.pid"

    def log_tail(self) -> str:
        """The end of the log."""
        return tail(self.log_file)

    def is_running(self) -> bool:
        """Whether the process is alive, or about to start."""
        try:
            # Shared: of two who ask at once, neither takes the other for the process.
            with self._lock_file.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except BlockingIOError:
            return True
        return False

    @contextlib.contextmanager
    def lock(self, patience: float = 0) -> Iterator[int | None]:
        """The open file of the lock, which is ours until it is closed here and in each process that was given it; or None.

        Who has it is about to start the process: the number of an earlier one is forgotten.
        """
        end = time.monotonic() + patience
        with self._lock_file.open("ab") as file:
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    if time.monotonic() < end:  # someone may only have asked
                        time.sleep(0.05)
                        continue
                    yield None
                else:
                    self._pid_file.unlink(missing_ok=True)
                    yield file.fileno()
                return

    def start(self, command: Sequence[str], lock: int) -> None:
        """Starts it with the lock, in its directory, and with few variables of the environment."""
        with contextlib.suppress(FileNotFoundError):
            self.log_file.replace(self.log_file.with_suffix(".log.1"))
        with self.log_file.open("ab") as output:
            self._process = subprocess.Popen(  # noqa: S603  ours, no shell
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=self.directory,
                env={name: value for name, value in os.environ.items() if _INHERITED.fullmatch(name)},
                # A key pressed in the terminal doesn't reach it.
                start_new_session=True,
                pass_fds=[lock],
            )
        self._pid_file.write_text(f"{self._process.pid}\n", encoding="ascii")

    def stop(self, patience: float = PATIENCE_SECONDS) -> bool:
        """Stops the process, by force (SIGKILL) if it takes longer than `patience` seconds.

        Returns:
            Whether there was one to stop.
        """
        if not self._signal(signal.SIGTERM):
            return False
        if not self._has_ended(patience):
            log.warning("the %s in %s does not stop; it is killed", self.name, self.directory)
            self.kill()
        return True

    def kill(self) -> None:
        """Ends the process at once (SIGKILL), as a crash would."""
        self._signal(signal.SIGKILL)
        if not self._has_ended(PATIENCE_SECONDS):
            raise BackgroundError(f"the {self.name} in {self.directory} can't be killed.")

    def _signal(self, number: signal.Signals) -> bool:
        """Sends a signal to the process if it is alive: without its lock, the number in the file may be another program's."""
        if not self.is_running():
            return False
        try:
            os.kill(int(self._pid_file.read_text(encoding="ascii")), number)
        except ProcessLookupError:  # it ended just now
            return False
        except (OSError, ValueError) as error:
            raise BackgroundError(f"the {self.name} in {self.directory} can't be sent a signal ({error}).") from error
        return True

    def _has_ended(self, patience: float) -> bool:
        end = time.monotonic() + patience
        while self.is_running():
            if time.monotonic() > end:
                return False
            time.sleep(0.05)
        if self._process is not None:
            self._process.wait()
        return True
