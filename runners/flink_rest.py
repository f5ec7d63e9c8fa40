"""What a Flink says of itself and its jobs, and does to them, over its REST interface."""

import dataclasses
import datetime as dt
import http.client
import json
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

CANCELLING = "CANCELLING"
ENDED = frozenset({"CANCELED", "FAILED", "FINISHED", "SUSPENDED"})
"""The states of a job that is over."""

_Told = TypeVar("_Told")

_PATIENCE_SECONDS = 5
_SAVEPOINT_SECONDS = 120


class FlinkError(RuntimeError):
    """Flink can't be fetched or started, doesn't answer, refuses, or died."""


@dataclasses.dataclass(frozen=True)
class Overview:
    """How much of a cluster there is."""

    version: str
    task_managers: int
    slots: int
    free_slots: int


@dataclasses.dataclass(frozen=True)
class Job:
    """A job on a cluster, over or not."""

    job_id: str
    name: str
    state: str
    started: dt.datetime


@dataclasses.dataclass(frozen=True)
class Checkpoints:
    """How many checkpoints of a job were completed and how many failed; what the last complete one took, if there is one."""

    completed: int
    failed: int
    last_at: dt.datetime | None = None
    last_bytes: int = 0
    last_duration: dt.timedelta = dt.timedelta()
    last_path: str | None = None


@dataclasses.dataclass(frozen=True)
class Subtask:
    """A vertex's work in one slot: how many records it has read, and when it ran, in seconds from the job's start."""

    records: int
    start: float
    end: float


@dataclasses.dataclass(frozen=True)
class Vertex:
    """Steps of a job that run as one.

    Attributes:
        ways: how what it reads comes to it: "Forward", from the subtask of the same number; else from those of all numbers.
        read_bytes: by all its subtasks; nothing by those that read a source.
    """

    name: str
    ways: frozenset[str]
    read_bytes: int
    subtasks: list[Subtask]


@dataclasses.dataclass(frozen=True)
class Flink:
    """A JobManager; every method raises FlinkError where it doesn't answer or refuses, or what answers is no Flink.

    Attributes:
        address: HOST:PORT, with http:// or without.
    """

    address: str

    def overview(self) -> Overview:
        names = ("flink-version", "taskmanagers", "slots-total", "slots-available")
        return self._ask("GET", "/overview", lambda found: Overview(*(found[name] for name in names)))

    def task_managers(self) -> set[str]:
        """Returns the ids of those TaskManagers whose slots are there."""
        return self._ask(
            "GET", "/taskmanagers", lambda found: {each["id"] for each in found["taskmanagers"] if each["slotsNumber"]}
        )

    def settings(self) -> dict[str, str]:
        """Returns the JobManager's settings."""
        return self._ask("GET", "/jobmanager/config", lambda found: {each["key"]: each["value"] for each in found})

    def jobs(self) -> list[Job]:
        """Returns the jobs that the JobManager remembers, those that are over too, the newest first."""
        jobs = self._ask("GET", "/jobs/overview", lambda found: [_job(each) for each in found["jobs"]])
        return sorted(jobs, key=lambda job: job.started, reverse=True)

    def state(self, job_id: str) -> str:
        return self._ask("GET", f"/jobs/{job_id}/status", lambda found: str(found["status"]))

    def cancel(self, job_id: str) -> None:
        """Asks for a job's end, without waiting for it."""
        self._ask("PATCH", f"/jobs/{job_id}?mode=cancel", lambda _: None)

    def stop(self, job_id: str, directory: str | None = None) -> str:
        """Ends a streaming job with a savepoint; returns the savepoint's URI.

        Args:
            directory: a URI; default: as the cluster's settings say.
        """
        asked = {"targetDirectory": directory, "drain": False}
        request = self._ask("POST", f"/jobs/{job_id}/stop", lambda found: found["request-id"], asked)
        end = time.monotonic() + _SAVEPOINT_SECONDS
        while (operation := self._ask("GET", f"/jobs/{job_id}/savepoints/{request}", _completed)) is None:
            if time.monotonic() > end:
                raise FlinkError(f"Flink at {self.address}: the savepoint of job {job_id} is not done yet.")
            time.sleep(0.1)
        if "failure-cause" in operation:
            raise FlinkError(f"Flink at {self.address}: no savepoint of job {job_id}: {_cause(operation)}")
        return operation["location"]

    def checkpoints(self, job_id: str) -> Checkpoints:
        return self._ask("GET", f"/jobs/{job_id}/checkpoints", _checkpoints)

    def vertices(self, job_id: str) -> tuple[float, list[Vertex]]:
        """Returns how many seconds a job took that is over, and what it was made of."""

        def read(found: Mapping[str, Any]) -> tuple[float, list[Vertex]]:
            ways = {each["id"]: {way["ship_strategy"] for way in each.get("inputs", [])} for each in found["plan"]["nodes"]}
            began = found["start-time"]
            return found["duration"] / 1000, [self._vertex(job_id, each, ways[each["id"]], began) for each in found["vertices"]]

        return self._ask("GET", f"/jobs/{job_id}", read)

    def _vertex(self, job_id: str, found: Mapping[str, Any], ways: set[str], began: int) -> Vertex:
        def read(vertex: Mapping[str, Any]) -> list[Subtask]:
            return [_subtask(each, began) for each in vertex["subtasks"]]

        subtasks = self._ask("GET", f"/jobs/{job_id}/vertices/{found['id']}", read)
        return Vertex(found["name"], frozenset(ways), found["metrics"]["read-bytes"], subtasks)

    def job_url(self, job_id: str) -> str:
        return f"http://{self._host_and_port}/jobs/{job_id}"

    @property
    def _host_and_port(self) -> str:
        return self.address.removeprefix("http://").rstrip("/")

    def _ask(self, method: str, path: str, read: Callable[[Any], _Told], body: Mapping[str, Any] | None = None) -> _Told:
        """Returns what is read from the answer."""
        # Of the standard library's clients, the one that knows of no proxies.
        try:
            connection = http.client.HTTPConnection(self._host_and_port, timeout=_PATIENCE_SECONDS)
        except http.client.InvalidURL as error:
            raise FlinkError(f"{self.address!r} is no HOST:PORT of a Flink.") from error
        try:
            content = None if body is None else json.dumps(body)
            connection.request(method, path, content, {"Content-Type": "application/json"})
            response = connection.getresponse()
            found = json.loads(response.read() or "{}")
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise FlinkError(f"no Flink answers at {self.address} ({error or type(error).__name__}).") from error
        finally:
            connection.close()
        try:
            if response.status < http.HTTPStatus.BAD_REQUEST:
                return read(found)
            told = found["errors"]
            reason = told[-1].strip().splitlines()[0] if told else response.reason
        except (AttributeError, LookupError, TypeError, ValueError, OverflowError, OSError) as error:
            raise FlinkError(f"what answers at {self.address} is no Flink.") from error
        raise FlinkError(f"Flink at {self.address} refuses: {reason}")


def _job(found: Mapping[str, Any]) -> Job:
    return Job(found["jid"], found["name"], found["state"], _time(found["start-time"]))


def _completed(found: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """What came of an operation, if it is over."""
    return found["operation"] if found["status"]["id"] == "COMPLETED" else None


def _checkpoints(found: Mapping[str, Any]) -> Checkpoints:
    counts, last = found["counts"], found["latest"]["completed"]
    if last is None:
        return Checkpoints(counts["completed"], counts["failed"])
    return Checkpoints(
        counts["completed"],
        counts["failed"],
        _time(last["latest_ack_timestamp"]),
        last["state_size"],
        dt.timedelta(milliseconds=last["end_to_end_duration"]),
        last["external_path"],
    )


def _subtask(found: Mapping[str, Any], began: int) -> Subtask:
    start = (found["start-time"] - began) / 1000
    return Subtask(found["metrics"]["read-records"], start, start + found["duration"] / 1000)


def _time(milliseconds: int) -> dt.datetime:
    return dt.datetime.fromtimestamp(milliseconds / 1000, dt.UTC)


def _cause(operation: Mapping[str, Any]) -> str:
    return str(operation["failure-cause"].get("stack-trace", "")).splitlines()[0]
