"""Which version of a job's database people query, and getting it onto this machine.

Below a path a symlink tells (data.database). An object store has none: there the ledger names the version, by compare-and-set,
and each host pulls the file, which never changes. A file's name says which model is in it and what its SHA-256 is,
`N-MODEL-RANDOM-SHA256.duckdb`: an older one that is made active again gets the next number in the ledger.
"""

import contextlib
import functools
import hashlib
import io
import re
import shutil
import tempfile
from pathlib import Path

from data import database, errors, files, ledger, store
from pipelines import config, contract

_FILE = re.compile(r"([1-9][0-9]*)-([0-9]+)-[0-9a-f]{8}-([0-9a-f]{64})\.duckdb")
"""Earlier versions' names had a number and a random part alone."""


def active(job: config.Job) -> int:
    """Returns the number of the version that people query; 0: there is none."""
    if not files.is_url(job.job.store):
        return database.current(Path(job.job.store))
    found = contract.open_ledger(job).active(name(job))
    return 0 if found is None else found.number


def publish(job: config.Job, contents: database.Contents, before: int) -> Path:
    """Makes the next version current; returns where it lies on this machine.

    Args:
        before: the version that was current when the contents were looked for: what was published since is as new.

    Raises:
        database.OvertakenError: another one is current by now.
    """
    if not files.is_url(job.job.store):
        return database.publish(Path(job.job.store), contents, job.publish.keep_versions, before)
    account, folder = contract.open_ledger(job), files.join(job.job.store, "versions")
    [model] = contents.model_versions["version"].to_pylist() or [0]
    with tempfile.TemporaryDirectory() as directory:
        draft = Path(directory) / "draft.duckdb"
        database.write(draft, contents)
        with draft.open("rb") as given:
            digest = hashlib.file_digest(given, "sha256").hexdigest()
            given.seek(0)
            version = ledger.Version(before + 1, f"{before + 1}-{model}-{store.new_id()[:8]}-{digest}.duckdb", digest)
            with files.create(files.join(folder, version.file)) as file:
                shutil.copyfileobj(given, file)
    if not account.activate(name(job), version):
        files.delete(files.join(folder, version.file))
        raise database.OvertakenError(f"{folder}: version {version.number} was published meanwhile.")
    # Above it there may be one that another publisher is about to name.
    there = sorted((_number(file), file) for file in files.names(folder) if _number(file) <= version.number)
    now = account.active(name(job))
    old = {file for _, file in there[: -job.publish.keep_versions]} - {now.file if now else ""}
    files.delete(*(files.join(folder, file) for file in old))
    return pull(job)


def show(job: config.Job, model: int) -> Path | None:
    """Makes the newest version that has a model current again, if one is still there; returns where it lies on this machine.

    Raises:
        errors.BadInputError: the version is not what its name says.
    """
    if not files.is_url(job.job.store):
        return database.show(Path(job.job.store), model)
    kept, account, folder = store.Store(job.job.store), contract.open_ledger(job), files.join(job.job.store, "versions")
    while True:
        before = account.active(name(job))
        found = [(_number(file), file) for file in files.names(folder) if _model(file) == model]
        if before is None or not found:
            return None
        _, file = max(found)
        version = ledger.Version(before.number + 1, file, _FILE.sub(r"\3", file))
        # All hosts will ask for it: so not before it is known to be whole.
        with contextlib.suppress(FileNotFoundError), tempfile.TemporaryFile() as tried:
            _fetch(kept, version, tried)
            if account.activate(name(job), version) and files.exists(files.join(folder, file)):
                return pull(job)


def model(job: config.Job) -> int | None:
    """Returns the model in the version that people query; None: there is none."""
    kept = store.Store(job.job.store)
    try:
        if files.is_url(kept.place):
            now = contract.open_ledger(job).active(name(job))
            if now is not None and _FILE.fullmatch(now.file):
                return _model(now.file)
            pull(job)
        with database.connect(kept.local()) as connection:
            row = connection.execute("SELECT version FROM model_versions").fetchone()
    except database.NothingPublishedError:
        return None
    return None if row is None else int(row[0])


def models(job: config.Job) -> dict[int, int | None]:
    """Returns the versions that are there, each with the number of its model; None: it has none, or its name doesn't say."""
    if not files.is_url(job.job.store):
        return database.models(Path(job.job.store))
    found = {_number(file): _model(file) for file in files.names(files.join(job.job.store, "versions"))}
    now = contract.open_ledger(job).active(name(job))
    return found | ({} if now is None else {now.number: _model(now.file)})


def _number(file: str) -> int:
    return int(file.partition("-")[0])


def _model(file: str) -> int | None:
    found = _FILE.fullmatch(file)
    return int(found[2]) or None if found else None


def pull(job: config.Job, directory: Path | None = None) -> Path:
    """Brings the active version from an object store onto this machine, if it isn't there, for `sottovoce query`.

    Args:
        directory: where, as a store; None: the job's own place in the user's state directory.

    Raises:
        errors.NothingThereError: nothing is published yet.
        errors.BadInputError: the store is no object store, or what it has is not what the ledger names.
    """
    if not files.is_url(job.job.store):
        raise errors.BadInputError(f"job.store = {job.job.store}: is a directory: query it where it is.")
    kept, account = store.Store(job.job.store), contract.open_ledger(job)
    while True:
        version = account.active(name(job))
        if version is None:
            raise database.NothingPublishedError(f"{kept.place}: nothing is published in this store yet.")
        local = kept.local() if directory is None else directory
        with contextlib.suppress(FileNotFoundError):
            fetch = functools.partial(_fetch, kept, version)
            return database.install(local, version.number, fetch, job.publish.keep_versions)
        if account.active(name(job)) == version:
            raise errors.BadInputError(f"{kept.place}: version {version.number}, which the ledger names, is missing.")


def _fetch(kept: store.Store, version: ledger.Version, into: io.BufferedRandom) -> None:
    """Writes a version into an empty file."""
    with files.open_file(files.join(kept.place, "versions", version.file)) as file:
        shutil.copyfileobj(file, into)
    into.seek(0)
    if hashlib.file_digest(into, "sha256").hexdigest() != version.digest:
        raise errors.BadInputError(f"{kept.place}: version {version.number} is not what the ledger names: put it back.")


def name(job: config.Job) -> str:
    """Returns what the ledger calls the job's database, and its models."""
    return f"{job.job.data_set}/{job.job.whole}"
