"""Encryption of a job's raw side files: `sottovoce rotate` encrypts them anew under the first key, `letters` shows them.

Each file is replaced whole, and all keys decrypt: a crash leaves some files under the old key and some under the new, which
the next run of either command, or of the job, reads. Keys are never deleted here: backups may be under them.
"""

from collections.abc import Iterator

from data import errors, files, letters, store, vault
from pipelines import config, contract, release


def run(job: config.Job) -> list[str]:
    """Encrypts the contribution book and all dead letters under the first key; returns what was done.

    Raises:
        config.JobFileError: the job has no keys.
        errors.AlreadyReleasedError: a run, or a stream, has the job in hand.
        vault.VaultError, book.BookError: a file is under none of the keys, or damaged.
    """
    if job.privacy.encryption_key_file is None:
        raise config.JobFileError(
            "rotate: the job encrypts nothing. Set privacy.encryption_key_file; `sottovoce key FILE --encryption` makes one."
        )
    keys, account, kept = vault.read(job.privacy.encryption_key_file), contract.open_ledger(job), contract.open_book(job)
    with release.alone(job) as (here, waiting):
        pages = sum(kept.rotate(each["series_id"]) for each in account.series(job.job.data_set) if not each["is_closed"])
        names: list[files.Name] = [*here.letter_files().values(), *([] if waiting is None else waiting.glob("*/*.letters"))]
        rewritten = [letters.rewrite(name, keys)[0] for name in names]
    done = [f"encrypted under the first key: {pages} file(s) of the contribution book, {sum(rewritten)} dead letter(s)"]
    if len(keys.keys) > 1:
        done.append(
            f"this job no longer needs the other {len(keys.keys) - 1} key(s) of {job.privacy.encryption_key_file}. Before you "
            "delete them: other jobs with this file, jobs of the same data set, and backups may"
        )
    return done


def show(job: config.Job, attempt: str | None) -> Iterator[str]:
    """Yields dead letters as JSON lines, decrypted.

    Args:
        attempt: those of one run alone.

    Raises:
        errors.NothingThereError: there is no such run.
        vault.VaultError: they are under none of the keys, or damaged.
    """
    there, keys = store.Store(job.job.store).letter_files(), vault.read(job.privacy.encryption_key_file)
    if attempt is not None and attempt not in there:
        raise errors.NothingThereError(f"{job.job.store}: has no dead letters of attempt {attempt!r}.")
    for name in there.values() if attempt is None else [there[attempt]]:
        yield from letters.read(name, keys)
