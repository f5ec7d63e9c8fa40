"""The store of one job: released tables, models and database versions, and the private corner of the operator.

    STORE/releases/ID/              a published release: manifest.json and its tables
    STORE/models/N/                 a trained model: manifest.json and its tables
    STORE/versions/N.duckdb, STORE/current.duckdb   (data.database)
    STORE/operator/                 mode 0700: dead letters and run records, exact figures, never published

What was charged stands in the ledger (data.ledger), outside every store. A release is visible here only after its charge.
"""

import contextlib
import fcntl
import itertools
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data import errors

RESERVED, PUBLISHED = "reserved", "published"
"""What the ledger says of a release."""


class Store:
    """A directory that one job owns. Methods that write are safe against a crash and against a second process."""

    def __init__(self, path: str | Path):
        self.path = Path(path)

    # Releases

    def attempt(self, attempt: str) -> Path:
        """Returns the directory, readable by the owner alone, that collects an attempt's tables until it is shown."""
        path = self._attempt_path(attempt)
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        return path

    def finish(self, attempt: str, manifest: dict[str, Any]) -> None:
        """Makes an attempt whole: the parts that its manifest names, safe on disk, and no others."""
        path = self.attempt(attempt)
        # What a retry within the attempt wrote twice has two draws of noise: one goes, unread.
        for file in path.glob("*/*"):
            if str(file.relative_to(path)) not in manifest["parts"]:
                file.unlink()
        for part in manifest["parts"]:
            sync(path / part)
        write_json(path / "manifest.json", manifest)

    def show(self, release_id: str, attempt: str) -> Path:
        """Makes the attempt that the ledger names visible under its release id, by one rename. Again: changes nothing."""
        final = self.release_path(release_id)
        with self._locked():
            if not final.exists():
                winner = self.attempt(attempt)
                winner.chmod(0o755)
                winner.rename(final)
                sync(final.parent)
        return final

    def settle(self, releases: Sequence[Mapping[str, Any]]) -> None:
        """Ends what a crash cut short: shows attempts that the ledger names, and deletes all others unread.

        Args:
            releases: the ledger's.
        """
        for release in releases:
            if release["status"] == PUBLISHED and self._attempt_path(release["attempt"]).exists():
                self.show(release["release_id"], release["attempt"])
        for left in (self.path / "releases").glob(".*"):
            shutil.rmtree(left, ignore_errors=True)

    def discard(self, attempt: str) -> None:
        """Deletes an attempt unread."""
        shutil.rmtree(self._attempt_path(attempt), ignore_errors=True)

    def release_path(self, release_id: str) -> Path:
        """Returns where a published release lies."""
        return self.path / "releases" / release_id

    def check(self, releases: Sequence[Mapping[str, Any]]) -> None:
        """Refuses a store that the ledger doesn't account for.

        Raises:
            errors.BadInputError: there are releases that the ledger doesn't know as published.
        """
        known = {release["release_id"] for release in releases if release["status"] == PUBLISHED}
        folder = self.path / "releases"
        there = {path.name for path in folder.iterdir() if not path.name.startswith(".")} if folder.is_dir() else set()
        if there - known:
            raise errors.BadInputError(
                f"job.store = {self.path}: {len(there - known)} release(s) there are not in the ledger. Give the ledger that "
                "they were charged to (privacy.ledger): without it nobody knows what their users have spent."
            )

    def published(self, releases: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Returns the manifests of the releases that are here and that the ledger says are published, in its order."""
        return [self.manifest(release["release_id"]) for release in releases if self._has(release)]

    def newest(self, releases: Sequence[Mapping[str, Any]], section: str, most: int = 1) -> list[dict[str, Any]]:
        """Returns, of `published`, those of the last windows whose report has a section, in order."""
        by_window = sorted(releases, key=lambda release: str(release["window_end"]))
        manifests = (self.manifest(release["release_id"]) for release in reversed(by_window) if self._has(release))
        return list(itertools.islice((each for each in manifests if section in each["reports"]), most))[::-1]

    def manifest(self, release_id: str) -> dict[str, Any]:
        """Returns the manifest of a release that is here."""
        return json.loads((self.release_path(release_id) / "manifest.json").read_text())

    def _has(self, release: Mapping[str, Any]) -> bool:
        return release["status"] == PUBLISHED and self.release_path(release["release_id"]).exists()

    def read_table(self, manifest: dict[str, Any], name: str, schema: pa.Schema) -> pa.Table:
        """Returns a table of a published release, joined from the parts that its manifest names."""
        path = self.release_path(manifest["release_id"])
        parts = [pq.read_table(path / part) for part in manifest["parts"] if part.startswith(f"{name}/")]
        return pa.concat_tables([schema.empty_table(), *(part.cast(schema) for part in parts)])

    # Models

    def add_model(self, model: Mapping[str, pa.Table], manifest: dict[str, Any]) -> Path:
        """Writes a model's tables and makes them the next STORE/models/N, whole; returns that directory."""
        models = self.path / "models"
        models.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".", dir=models) as attempt:
            draft = Path(attempt) / "model"
            draft.mkdir()
            for name, table in model.items():
                pq.write_table(table, draft / f"{name}.parquet")
            write_json(draft / "manifest.json", manifest)
            with self._locked():
                final = models / str(max(self._model_numbers(), default=0) + 1)
                draft.rename(final)
        return final

    def latest_model(self) -> Path | None:
        """Returns the newest model's directory, or None."""
        numbers = self._model_numbers()
        return self.path / "models" / str(max(numbers)) if numbers else None

    def _model_numbers(self) -> list[int]:
        models = self.path / "models"
        return [int(path.name) for path in models.iterdir() if path.name.isdigit()] if models.exists() else []

    # Operator side

    def operator(self, *parts: str) -> Path:
        """Returns a directory of the operator's corner, made with mode 0700."""
        path = self.path / "operator"
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        path.chmod(0o700)
        path = path.joinpath(*parts)
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        return path

    @contextlib.contextmanager
    def spill(self) -> Iterator[Path]:
        """Gives a directory for what waits on disk during a run. It goes with the run; a crashed one's goes with the next."""
        directory = self.operator("spill")
        clear(directory)
        with tempfile.TemporaryDirectory(dir=directory) as path:
            yield Path(path)

    def write_run_record(self, attempt: str, record: dict[str, Any]) -> None:
        """Keeps the exact figures of a run for the operator."""
        write_json(self.operator("runs") / f"{attempt}.json", record)

    def run_record(self, attempt: str) -> dict[str, Any]:
        """Returns the run's exact figures."""
        return json.loads((self.path / "operator" / "runs" / f"{attempt}.json").read_text())

    def find_run_record(self, attempt: str) -> dict[str, Any] | None:
        """Returns the run's exact figures, if this store has them."""
        return self.run_record(attempt) if (self.path / "operator" / "runs" / f"{attempt}.json").exists() else None

    def add_to_run_record(self, attempt: str, figures: Mapping[str, Any]) -> None:
        """Adds exact figures to a run's record."""
        self.write_run_record(attempt, {**self.run_record(attempt), **figures})

    def run_records(self) -> dict[str, dict[str, Any]]:
        """Returns the exact figures of all runs that this store has, by their attempts."""
        return {path.stem: json.loads(path.read_text()) for path in (self.path / "operator" / "runs").glob("[!.]*.json")}

    def make(self) -> None:
        """Makes the store's directory.

        Raises:
            errors.BadInputError: it can't be.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise errors.BadInputError(f"job.store = {self.path}: can't be a directory ({error.strerror}).") from error

    @contextlib.contextmanager
    def running(self) -> Iterator["Store"]:
        """Keeps other release jobs out of this store.

        Raises:
            errors.AlreadyReleasedError: another one is running.
            errors.BadInputError: the directory can't be made.
        """
        self.make()
        with _alone(self.path / ".running", f"{self.path}: another release job is running here. Wait for it."):
            yield self

    @contextlib.contextmanager
    def streaming(self, goes_on: bool = False) -> Iterator[Path]:
        """Keeps other streams out of this store; gives the directory in which what has closed waits.

        Args:
            goes_on: whether what an earlier stream has left there stays.

        Raises:
            errors.AlreadyReleasedError: another one is running.
        """
        directory = self.operator("stream")
        with _alone(directory / ".running", f"{self.path}: the job is streamed already."):
            if not goes_on:
                clear(directory)
            yield directory

    # Inside

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        self.make()
        with (self.path / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _attempt_path(self, attempt: str) -> Path:
        return self.path / "releases" / f".{attempt}"


@contextlib.contextmanager
def _alone(path: Path, taken: str) -> Iterator[None]:
    """Holds the lock on a file, which ends with the process; one that finds it held is told `taken`."""
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise errors.AlreadyReleasedError(taken) from error
        yield


def clear(directory: Path, but: Path | None = None) -> None:
    """Deletes the directories in a directory, but for one."""
    for left in directory.glob("*/"):
        if left != but:
            shutil.rmtree(left, ignore_errors=True)


def new_id() -> str:
    """Returns a random name: it says nothing about the data."""
    return uuid.uuid4().hex


def write_json(path: Path, value: Any) -> None:
    """Replaces a file atomically: a crash leaves the old or the new content, never half."""
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=".", delete=False) as file:
        json.dump(value, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    Path(file.name).chmod(0o644)
    Path(file.name).replace(path)
    sync(path.parent)


def create(path: Path, content: bytes) -> bool:
    """Writes a file, whole and safe on disk, unless it is there already; says whether it wrote it."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
        try:
            os.link(file.name, path)
        except FileExistsError:
            return False
    sync(path.parent)
    return True


def sync(path: Path) -> None:
    """Makes sure that a file, or the names in a directory, outlast a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
