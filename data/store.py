"""The store of one job: released tables, models and database versions, and the private corner of the operator.

    STORE/attempts/ATTEMPT/         tables of a try to release, and its manifest.json
    STORE/releases/ID/manifest.json a published release; its tables are those of the attempt that it names
    STORE/models/N-ID/              a trained model: its tables and, last, manifest.json
    STORE/versions/N.duckdb, STORE/current.duckdb   (data.database); in an object store STORE/versions/N-ID.duckdb
    STORE/operator/                 mode 0700: dead letters (data.letters) and run records, exact figures, never published

It lies below a path or in an object store (data.files): nothing in it is ever renamed. What was charged stands in the ledger
(data.ledger), outside every store. A release is visible here only after its charge.
"""

import contextlib
import datetime as dt
import fcntl
import hashlib
import io
import itertools
import json
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from data import errors, files, state

RESERVED, PUBLISHED = "reserved", "published"
"""What the ledger says of a release."""
_MANIFEST = "manifest.json"
_LETTERS, _ENDING = "dead_letters", ".jsonl"
_MODEL = re.compile(rf"(([1-9][0-9]*)(?:-[0-9a-f]+)?)/{_MANIFEST}")


class Model(NamedTuple):
    """A trained model.

    Attributes:
        number: its version.
        place: where its tables are.
        manifest: what it was trained on, and how.
    """

    number: int
    place: str
    manifest: dict[str, Any]

    def read_table(self, name: str, schema: pa.Schema) -> pa.Table:
        """Returns one of its tables."""
        return _read_parquet(files.join(self.place, f"{name}.parquet")).cast(schema)

    def digest(self, name: str) -> str:
        """Returns the SHA-256 of one of its tables' file, hex digits."""
        return hashlib.sha256(files.read(files.join(self.place, f"{name}.parquet"))).hexdigest()


class Store:
    """A place that one job owns. Methods that write are safe against a crash and against a second process.

    Attributes:
        place: a directory, or an object store's URL.
    """

    def __init__(self, place: files.Name):
        self.place = str(place)

    # Releases

    def write_part(self, attempt: str, name: str, table: pa.Table) -> str:
        """Writes a part of a table into an attempt, which only the owner can read until it is shown; returns its name there."""
        part = f"{name}/{new_id()}.parquet"
        files.make_private(self._attempt(attempt))
        with files.create(files.join(self._attempt(attempt), part)) as file:
            pq.write_table(table, file)
        return part

    def finish(self, attempt: str, manifest: Mapping[str, Any]) -> None:
        """Makes an attempt whole: the parts that its manifest names, and no others."""
        place = self._attempt(attempt)
        # What a retry within the attempt wrote twice has two draws of noise: one goes, unread.
        files.delete(*(files.join(place, left) for left in files.names(place) if left not in manifest["parts"]))
        files.make_private(place)
        write_json(files.join(place, _MANIFEST), {**manifest, "attempt": attempt})

    def show(self, release_id: str, attempt: str) -> None:
        """Makes the attempt that the ledger names visible under its release id, by one file. Again: changes nothing."""
        if not self.has(release_id):
            place = self._attempt(attempt)
            manifest = files.read(files.join(place, _MANIFEST))
            files.make_public(place)
            files.write(self._manifest(release_id), manifest)

    def settle(self, releases: Sequence[Mapping[str, Any]]) -> None:
        """Ends what a crash cut short: shows attempts that the ledger names, and deletes all others unread.

        Args:
            releases: the ledger's, of all that is here (`check`).
        """
        named = {release["attempt"]: release["release_id"] for release in releases if release["status"] == PUBLISHED}
        attempts, there = self.attempts(), self.release_ids()
        for attempt in attempts & named.keys():
            if named[attempt] not in there:
                self.show(named[attempt], attempt)
        for attempt in attempts - named.keys():
            self.discard(attempt)

    def discard(self, attempt: str) -> None:
        """Deletes an attempt unread."""
        files.delete_directory(self._attempt(attempt))

    def release_ids(self) -> set[str]:
        """Returns those of the releases that are here."""
        return self._folders("releases")

    def attempts(self) -> set[str]:
        """Returns the attempts that are here: of releases that were shown, and such as are to be settled."""
        return self._folders("attempts")

    def has(self, release_id: str) -> bool:
        """Says whether a published release is here."""
        return files.exists(self._manifest(release_id))

    def check(self, releases: Sequence[Mapping[str, Any]]) -> None:
        """Refuses a store that the ledger doesn't account for.

        Raises:
            errors.BadInputError: there are releases that the ledger doesn't know as published.
        """
        unknown = self.release_ids() - {release["release_id"] for release in releases if release["status"] == PUBLISHED}
        if unknown:
            raise errors.BadInputError(
                f"job.store = {self.place}: {len(unknown)} release(s) there are not in the ledger. Give the ledger that "
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
        return json.loads(files.read(self._manifest(release_id)))

    def _has(self, release: Mapping[str, Any]) -> bool:
        return release["status"] == PUBLISHED and self.has(release["release_id"])

    def read_table(self, manifest: dict[str, Any], name: str, schema: pa.Schema) -> pa.Table:
        """Returns a table of a published release, joined from the parts that its manifest names."""
        # Earlier versions moved an attempt's tables to its release.
        is_moved = "attempt" not in manifest
        place = files.join(self.place, "releases", manifest["release_id"]) if is_moved else self._attempt(manifest["attempt"])
        parts = [_read_parquet(files.join(place, part)) for part in manifest["parts"] if part.startswith(f"{name}/")]
        return pa.concat_tables([schema.empty_table(), *(part.cast(schema) for part in parts)])

    # Models

    def add_model(self, tables: Mapping[str, pa.Table], manifest: dict[str, Any]) -> Model:
        """Writes a model's tables and, as the next one, makes them visible by the manifest."""
        number = max(self._models(), default=(0, ""))[0] + 1
        # Two that are trained at once can't be mixed up.
        place = files.join(self.place, "models", f"{number}-{new_id()}")
        for name, table in tables.items():
            with files.create(files.join(place, f"{name}.parquet")) as file:
                pq.write_table(table, file)
        write_json(files.join(place, _MANIFEST), manifest)
        return Model(number, place, manifest)

    def latest_model(self) -> Model | None:
        """Returns the newest model, or None."""
        return next(iter(self.models(1)), None)

    def models(self, most: int) -> list[Model]:
        """Returns the newest models, at most so many, newest first."""
        return [self._model(*named) for named in sorted(self._models(), reverse=True)[:most]]

    def model(self, number: int) -> Model | None:
        """Returns the model of that number, or None."""
        named = max((each for each in self._models() if each[0] == number), default=None)
        return None if named is None else self._model(*named)

    def model_numbers(self) -> list[int]:
        """Returns the numbers of the models that are whole, in order."""
        return sorted({number for number, _ in self._models()})

    def _model(self, number: int, name: str) -> Model:
        place = files.join(self.place, "models", name)
        return Model(number, place, json.loads(files.read(files.join(place, _MANIFEST))))

    def _models(self) -> list[tuple[int, str]]:
        """Number and name of each that is whole."""
        there = map(_MODEL.fullmatch, files.names(files.join(self.place, "models")))
        return [(int(found[2]), found[1]) for found in there if found]

    # Operator side

    def operator(self, *parts: str) -> str:
        """Returns a directory of the operator's corner, made with mode 0700."""
        files.make_private(files.join(self.place, "operator"))
        place = files.join(self.place, "operator", *parts)
        files.make_private(place)
        return place

    def letters(self, attempt: str) -> str:
        """Returns the name of the file of an attempt's dead letters."""
        return files.join(self.operator(_LETTERS), attempt + _ENDING)

    def letter_files(self) -> dict[str, str]:
        """Returns the files of dead letters that are here, by their attempts."""
        place = files.join(self.place, "operator", _LETTERS)
        named = (name for name in files.names(place) if name.endswith(_ENDING) and "/" not in name)
        return {name.removesuffix(_ENDING): files.join(place, name) for name in named}

    def written(self, part: str) -> dict[str, dt.datetime]:
        """Returns when each file of a part of the operator's corner was last written, by its name there."""
        return files.written(files.join(self.place, "operator", part))

    def delete_drafts(self) -> None:
        """Deletes what crashed runs have left of dead letters that they were writing."""
        place = self.operator(_LETTERS)
        if files.is_url(place):
            files.delete(*(files.join(place, name) for name in files.names(place) if "/" in name))
            return
        for left in Path(place).iterdir():
            if left.is_dir():
                shutil.rmtree(left, ignore_errors=True)
            elif left.name.startswith("."):
                left.unlink()

    @contextlib.contextmanager
    def spill(self) -> Iterator[str]:
        """Gives a directory for what waits on disk during a run. It goes with the run; a crashed one's goes with the next."""
        files.delete_directory(self.operator("spill"))
        place = files.join(self.operator("spill"), new_id())
        files.make_private(place)
        try:
            yield place
        finally:
            files.delete_directory(place)

    def write_run_record(self, attempt: str, record: dict[str, Any]) -> None:
        """Keeps the exact figures of a run for the operator."""
        write_json(files.join(self.operator("runs"), f"{attempt}.json"), record)

    def run_record(self, attempt: str) -> dict[str, Any]:
        """Returns the run's exact figures."""
        return json.loads(files.read(self._run_record(attempt)))

    def find_run_record(self, attempt: str) -> dict[str, Any] | None:
        """Returns the run's exact figures, if this store has them."""
        try:
            return self.run_record(attempt)
        except FileNotFoundError:
            return None

    def add_to_run_record(self, attempt: str, figures: Mapping[str, Any]) -> None:
        """Adds exact figures to a run's record."""
        self.write_run_record(attempt, {**self.run_record(attempt), **figures})

    def run_records(self) -> dict[str, dict[str, Any]]:
        """Returns the exact figures of all runs that this store has, by their attempts."""
        found = files.names(files.join(self.place, "operator", "runs"))
        attempts = [name.removesuffix(".json") for name in found if name.endswith(".json")]
        return {attempt: self.run_record(attempt) for attempt in attempts}

    def make(self) -> None:
        """Makes the store's directory.

        Raises:
            errors.BadInputError: it can't be.
        """
        if files.is_url(self.place):
            return
        try:
            Path(self.place).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise errors.BadInputError(f"job.store = {self.place}: can't be a directory ({error.strerror}).") from error

    @contextlib.contextmanager
    def running(self) -> Iterator["Store"]:
        """Keeps other release jobs of this machine out of this store.

        Raises:
            errors.AlreadyReleasedError: another one is running.
            errors.BadInputError: the directory can't be made.
        """
        self.make()
        lock = self.local() / ".running"
        with _alone(lock, f"{self.place}: another release job is running here. Wait for it."):
            yield self

    def local(self) -> Path:
        """Returns the directory on this machine where the store's locks are, and the versions that people query here."""
        if not files.is_url(self.place):
            return Path(self.place)
        named = re.sub(r"[^A-Za-z0-9.]+", "-", self.place.partition("://")[2])[-60:]
        directory = state.directory() / "stores" / f"{named}-{hashlib.sha256(self.place.encode()).hexdigest()[:12]}"
        directory.mkdir(parents=True, exist_ok=True)
        return directory

    @contextlib.contextmanager
    def streaming(self, goes_on: bool = False) -> Iterator[Path]:
        """Keeps other streams out of this store, which lies below a path; gives the directory in which what has closed waits.

        Args:
            goes_on: whether what an earlier stream has left there stays.

        Raises:
            errors.AlreadyReleasedError: another one is running.
        """
        directory = Path(self.operator("stream"))
        with _alone(directory / ".running", f"{self.place}: the job is streamed already."):
            if not goes_on:
                clear(directory)
            yield directory

    # Inside

    def _folders(self, name: str) -> set[str]:
        return {file.partition("/")[0] for file in files.names(files.join(self.place, name))}

    def _attempt(self, attempt: str) -> str:
        return files.join(self.place, "attempts", attempt)

    def _manifest(self, release_id: str) -> str:
        return files.join(self.place, "releases", release_id, _MANIFEST)

    def _run_record(self, attempt: str) -> str:
        return files.join(self.place, "operator", "runs", f"{attempt}.json")


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


def write_json(place: files.Name, value: Any) -> None:
    """Replaces a file atomically: a crash leaves the old or the new content, never half."""
    files.write(place, json.dumps(value, indent=1).encode())


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
    files.sync(path.parent)
    return True


def _read_parquet(name: str) -> pa.Table:
    if not files.is_url(name):
        return pq.read_table(name)
    return pq.read_table(io.BytesIO(files.read(name)))
