"""Which processes and sockets there are, as Linux tells."""

import pathlib
import subprocess
import time

LOOPBACK = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}
"""Its addresses, as /proc/net has them."""


def wait_for(happened, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.1)


def flink_processes(parent: int) -> set[int]:
    """Those that belong to a process: its tether and, below that, Java; and those of its steps in Python."""
    found = {parent}
    lines = subprocess.run(["ps", "-eo", "pid,ppid"], capture_output=True, text=True, check=True).stdout.splitlines()[1:]
    pairs = [tuple(map(int, line.split())) for line in lines]
    for _ in range(2):
        found |= {pid for pid, above in pairs if above in found and ("sottovoce-flink" in command_of(pid) or is_worker(pid))}
    return found - {parent}


def children(parent: int) -> list[int]:
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(parent)], capture_output=True, text=True, check=False)
    return list(map(int, found.stdout.split()))


def command_of(pid: int) -> str:
    try:
        return pathlib.Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


def is_worker(pid: int) -> bool:
    return "runners.worker" in command_of(pid)


def is_java(pid: int) -> bool:
    return command_of(pid).split("\0")[0].endswith("/java")


def listening(pids: set[int]) -> list[str]:
    """The addresses, as /proc/net has them, that processes listen on."""
    return [here.split(":")[0] for pid in pids for here, _, state in sockets(pid) if state == "0A"]


def connections(pid: int, port: int) -> int:
    """How many connections a process has to a port."""
    return sum(there.endswith(f":{port:04X}") for _, there, _ in sockets(pid))


def sockets(pid: int) -> list[tuple[str, str, str]]:
    """Of each TCP socket of a process: its address, the other's, its state, as /proc/net has them."""
    inodes = set()
    for file in pathlib.Path(f"/proc/{pid}/fd").iterdir():
        try:
            inodes.add(str(file.readlink()))
        except OSError:  # closed since
            continue
    rows = [line.split() for name in ("tcp", "tcp6") for line in pathlib.Path(f"/proc/net/{name}").read_text().splitlines()[1:]]
    return [(row[1], row[2], row[3]) for row in rows if f"socket:[{row[9]}]" in inodes]
