"""The store of one job: released tables, models and database versions, and the private corner of the operator.

    STORE/privacy_ledger.json       what every release here was granted, reserved before its noise was drawn
    STORE/releases/ID/              a published release: manifest.json and its tables
    STORE/models/N/                 a trained model: manifest.json and its tables
    STORE/versions/N.duckdb, STORE/current.duckdb   (data.database)
    STORE/operator/                 mode 0700: dead letters and run records, exact figures, never published

The lasting ledger, outside the store, is to take the place of privacy_ledger.json.
"""

import contextlib
import fcntl
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data import errors

RESERVED = "reserved"
PUBLISHED = "published"


class Store:
    """A directory that one job owns. Methods that write are safe against a crash and against a second process."""

    def __init__(self, path: str | Path):
        self.path = Path(path)

    # Ledger

    def reserve(self, release_id: str, charge: dict[str, Any], allow_another: bool) -> None:
        """Writes a charge into the ledger, before any noise is drawn. A reservation stays spent, come what may.

        Reserving the same release again changes nothing: a retry pays nothing more.

        Raises:
            AlreadyReleasedError: the ledger has another release and `allow_another` is false.
        """
        with self._locked():
            self.check()
            ledger = self.ledger()
            if any(entry["release_id"] == release_id for entry in ledger):
                return
            if ledger and not allow_another:
                raise errors.AlreadyReleasedError(self.refusal())
            self._write_ledger([*ledger, {"release_id": release_id, "status": RESERVED, **charge}])

    def check(self) -> None:
        """Refuses a store that the ledger doesn't account for.

        Raises:
            errors.BadInputError: there are releases that the ledger doesn't know.
        """
        known = {charge["release_id"] for charge in self.ledger()}
        releases = self.path / "releases"
        there = {path.name for path in releases.iterdir() if not path.name.startswith(".")} if releases.is_dir() else set()
        if there - known:
            raise errors.BadInputError(
                f"job.store = {self.path}: {len(there - known)} release(s) there are not in privacy_ledger.json. Put the "
                "ledger back: without it nobody knows what the users of these releases have spent."
            )

    def refusal(self) -> str:
        """What to tell somebody who asks for another release."""
        charges = self.ledger()
        published = sum(charge["status"] == PUBLISHED for charge in charges)
        again = "Reading what is published again costs nothing (`sottovoce train` and `publish`)"
        if not published:
            again = "None came to be published; the same job run again finishes it at no further cost"
        return (
            f"{self.path} was charged for {len(charges)} release(s) already, {published} of them published. {again}; another "
            "release charges every user once more: ask for it with --new-release."
        )

    def abandoned(self, charge: dict[str, Any]) -> str | None:
        """Returns the id of the newest charge if it never came to be published and is for the same: a retry can use it."""
        ledger = self.ledger()
        if not ledger or ledger[-1]["status"] == PUBLISHED:
            return None
        same = all(ledger[-1].get(key) == value for key, value in charge.items() if key != "created")
        return str(ledger[-1]["release_id"]) if same else None

    def ledger(self) -> list[dict[str, Any]]:
        """Returns every charge, oldest first."""
        path = self.path / "privacy_ledger.json"
        try:
            return json.loads(path.read_text()) if path.exists() else []
        except (OSError, ValueError) as error:
            raise errors.BadInputError(f"job.store: {path} can't be read ({type(error).__name__}): was it edited?") from error

    # Releases

    def attempt(self, release_id: str, attempt: str) -> Path:
        """Returns the directory, readable by the owner alone, that collects an attempt's tables until `commit`."""
        path = self.path / "releases" / f".{release_id}.{attempt}"
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        return path

    def commit(self, release_id: str, attempt: str, manifest: dict[str, Any]) -> Path:
        """Makes one attempt visible under its release id, once and whole, and marks its charge published.

        Of several attempts the first wins; the others are deleted unread.
        """
        final = self.release_path(release_id)
        with self._locked():
            if not final.exists():  # or a crash came between the rename and the ledger
                winner = self.attempt(release_id, attempt)
                # What a retry within the attempt wrote twice has two draws of noise: one goes, unread.
                for file in winner.glob("*/*"):
                    if str(file.relative_to(winner)) not in manifest["parts"]:
                        file.unlink()
                for part in manifest["parts"]:
                    sync(winner / part)
                write_json(winner / "manifest.json", manifest)
                winner.chmod(0o755)
                winner.rename(final)
                sync(final.parent)
            published = [
                {**entry, "status": PUBLISHED} if entry["release_id"] == release_id else entry for entry in self.ledger()
            ]
            self._write_ledger(published)
        self.discard_attempts(release_id)
        return final

    def discard_attempts(self, release_id: str) -> None:
        """Deletes, unread, what attempts at a release left behind."""
        for attempt in (self.path / "releases").glob(f".{release_id}.*"):
            shutil.rmtree(attempt, ignore_errors=True)

    def release_path(self, release_id: str) -> Path:
        """Returns where a published release lies."""
        return self.path / "releases" / release_id

    def published(self) -> list[dict[str, Any]]:
        """Returns the manifests of the published releases, in the ledger's order."""
        paths = [self.release_path(entry["release_id"]) / "manifest.json" for entry in self.ledger()]
        return [json.loads(path.read_text()) for path in paths if path.exists()]

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
        for left in directory.iterdir():
            shutil.rmtree(left, ignore_errors=True)
        with tempfile.TemporaryDirectory(dir=directory) as path:
            yield Path(path)

    def write_run_record(self, release_id: str, record: dict[str, Any]) -> None:
        """Keeps the exact figures of a run for the operator."""
        write_json(self.operator("runs") / f"{release_id}.json", record)

    def run_record(self, release_id: str) -> dict[str, Any]:
        """Returns the run's exact figures."""
        return json.loads((self.path / "operator" / "runs" / f"{release_id}.json").read_text())

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
        with (self.path / ".running").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise errors.AlreadyReleasedError(f"{self.path}: another release job is running here. Wait for it.") from error
            yield self

    # Inside

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        self.make()
        with (self.path / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _write_ledger(self, entries: list[dict[str, Any]]) -> None:
        write_json(self.path / "privacy_ledger.json", entries)


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


def sync(path: Path) -> None:
    """Makes sure that a file, or the names in a directory, outlast a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
