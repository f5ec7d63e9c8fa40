"""Which version of a job's database people query, and getting it onto this machine.

Below a path a symlink tells (data.database). An object store has none: there the ledger names the version, by compare-and-set,
and each host pulls the file, which never changes.
"""

import contextlib
import functools
import hashlib
import io
import shutil
import tempfile
from pathlib import Path

from data import database, errors, files, ledger, store
from pipelines import config, contract


def active(job: config.Job) -> int:
    """Returns the number of the version that people query; 0: there is none."""
    if not files.is_url(job.job.store):
        return database.current(Path(job.job.store))
    found = contract.open_ledger(job).active(_name(job))
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
    name = f"{before + 1}-{store.new_id()}.duckdb"
    with tempfile.TemporaryDirectory() as directory:
        draft = Path(directory) / "draft.duckdb"
        database.write(draft, contents)
        with draft.open("rb") as given, files.create(files.join(folder, name)) as file:
            version = ledger.Version(before + 1, name, hashlib.file_digest(given, "sha256").hexdigest())
            given.seek(0)
            shutil.copyfileobj(given, file)
    if not account.activate(_name(job), version):
        files.delete(files.join(folder, name))
        raise database.OvertakenError(f"{folder}: version {version.number} was published meanwhile.")
    # Above it there may be one that another publisher is about to name.
    last = version.number - job.publish.keep_versions
    files.delete(*(files.join(folder, old) for old in files.names(folder) if int(old.partition("-")[0]) <= last))
    return pull(job)


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
        version = account.active(_name(job))
        if version is None:
            raise database.NothingPublishedError(f"{kept.place}: nothing is published in this store yet.")
        local = kept.local() if directory is None else directory
        with contextlib.suppress(FileNotFoundError):
            fetch = functools.partial(_fetch, kept, version)
            return database.install(local, version.number, fetch, job.publish.keep_versions)
        if account.active(_name(job)) == version:
            raise errors.BadInputError(f"{kept.place}: version {version.number}, which the ledger names, is missing.")


def _fetch(kept: store.Store, version: ledger.Version, into: io.BufferedRandom) -> None:
    """Writes a version into an empty file."""
    with files.open_file(files.join(kept.place, "versions", version.file)) as file:
        shutil.copyfileobj(file, into)
    into.seek(0)
    if hashlib.file_digest(into, "sha256").hexdigest() != version.digest:
        raise errors.BadInputError(f"{kept.place}: version {version.number} is not what the ledger names: put it back.")


def _name(job: config.Job) -> str:
    return f"{job.job.data_set}/{job.job.whole}"
