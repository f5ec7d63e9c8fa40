"""A job whose raw side files are encrypted: nothing of a user is legible in them, under old keys and new ones."""

import json
import pathlib

import pytest

from data import errors, letters, store, vault
from pipelines import cli, config, contract, release, rotate, source
from tests.pipelines.example import load, view, write_job

BOOKED = ["--window.size=1d", "--window.max_windows_contributed=2", "--window.end=2025-01-11"]
EVENTS = [view("ann", "a", "1", "2025-01-01"), view("ann", "a", "2", "2025-01-02"), view("ann-who-errs", "a", "3", "never")]


def job_of(directory: pathlib.Path, *flags: str) -> config.Job:
    """A job with a book, two windows of ann's and a dead letter, and a key for them."""
    if not (directory / "encryption.key").exists():
        vault.add_key(directory / "encryption.key")
    return load(write_job(directory, EVENTS), *BOOKED, f"--privacy.encryption_key_file={directory}/encryption.key", *flags)


def released(job: config.Job, day: int) -> None:
    list(release.run_until(job, job.window.start.replace(day=day)))


def legible(directory: pathlib.Path, text: bytes) -> set[str]:
    """The files that have a text in them, but for the events themselves."""
    found = (path for path in directory.rglob("*") if path.is_file() and text in path.read_bytes())
    return {path.name for path in found} - {"events.csv"}


def pseudonyms(job: config.Job) -> list[bytes]:
    """Whom the book has."""
    [series] = contract.open_ledger(job).series("test")
    booked = series["pages"][-1]
    spent = contract.open_book(job).spent(series["series_id"], booked["number"], booked["digest"])
    return [each for table in spent for each in table["privacy_id"].to_pylist()]


def test_with_a_key_neither_letters_nor_the_book_are_legible(tmp_path):
    job = job_of(tmp_path)
    released(job, 2)
    [ann] = pseudonyms(job)
    assert legible(tmp_path, b"ann-who-errs") == legible(tmp_path, ann) == set()
    assert [json.loads(letter)["row"] for letter in rotate.show(job, None)] == [3]


def test_without_a_key_they_are(tmp_path):
    """The control."""
    job = load(write_job(tmp_path, EVENTS), *BOOKED)
    released(job, 2)
    [ann] = pseudonyms(job)
    assert legible(tmp_path, b"ann-who-errs") != set() != legible(tmp_path, ann)


def test_a_job_goes_on_from_plain_files_and_under_new_keys_and_rotating_ends_the_old_ones(tmp_path):
    released(load(write_job(tmp_path, EVENTS), *BOOKED), 2)
    job = job_of(tmp_path)
    released(job, 3)
    vault.add_key(tmp_path / "encryption.key")
    released(job, 4)
    contract.verify(job, None)
    assert rotate.run(job)[0].endswith("contribution book, 2 dead letter(s)")
    assert rotate.run(job)[0].endswith(": 0 file(s) of the contribution book, 0 dead letter(s)")
    newest = (tmp_path / "encryption.key").read_text().splitlines()[0]
    (tmp_path / "encryption.key").write_text(newest)
    contract.verify(job, None)
    assert len(list(rotate.show(job, None))) == 3
    [ann] = pseudonyms(job)
    assert legible(tmp_path, b"ann-who-errs") == legible(tmp_path, ann) == set()
    released(job, 5)


def test_a_crash_while_rotating_costs_nothing(tmp_path, monkeypatch):
    job = job_of(tmp_path)
    released(job, 3)
    vault.add_key(tmp_path / "encryption.key")
    with monkeypatch.context() as crash:
        crash.setattr(letters, "rewrite", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            rotate.run(job)
    released(job, 4)
    assert len(list(rotate.show(job, None))) == 3
    assert "2 dead letter(s)" in rotate.run(job)[0]


def test_a_lost_key_is_told_and_spends_nothing(tmp_path):
    job = job_of(tmp_path)
    released(job, 2)
    (tmp_path / "encryption.key").unlink()
    vault.add_key(tmp_path / "encryption.key")
    for use in (lambda: released(job, 3), lambda: rotate.run(job), lambda: list(rotate.show(job, None))):
        with pytest.raises(vault.VaultError, match="is encrypted, under a key that is not in"):
            use()


def test_letters_that_a_stream_has_left_are_encrypted_anew(tmp_path):
    job = job_of(tmp_path)
    waiting = pathlib.Path(store.Store(job.job.store).operator("stream", "run")) / "x.letters"
    waiting.write_text('0f {"row": 1}\n')
    assert "1 dead letter(s)" in rotate.run(job)[0]
    assert list(letters.read(waiting, vault.read(job.privacy.encryption_key_file))) == ['0f {"row": 1}']


def test_a_job_that_runs_or_is_streamed_is_left_alone(tmp_path):
    job = job_of(tmp_path)
    with store.Store(job.job.store).streaming(), pytest.raises(errors.AlreadyReleasedError, match="streamed already"):
        rotate.run(job)
    with release.leased(job, contract.open_ledger(job)), pytest.raises(errors.AlreadyReleasedError, match="running"):
        rotate.run(job)


def test_letters_of_an_encrypted_file_go_to_their_topic_as_they_came(tmp_path):
    keys = vault.Vault((bytes(32),))
    letter = {"file": "t/0", "row": 7, "reason": "not JSON", "raw": "x", "key": None, "value": "eA=="}
    (tmp_path / "a.jsonl").write_text(keys.seal_line(json.dumps(letter)) + "\n")
    [message] = source.dead_letters._messages(tmp_path / "a.jsonl", keys, False)
    assert message["value"] == b"x"


def test_the_commands(tmp_path, capsys):
    job = job_of(tmp_path)
    released(job, 2)
    flags = [*BOOKED, f"--privacy.encryption_key_file={tmp_path}/encryption.key"]
    path = str(tmp_path / "job.toml")
    assert cli.main(["key", str(tmp_path / "encryption.key"), "--encryption"]) == 0
    capsys.readouterr()
    assert cli.main(["rotate", path, *flags]) == 0
    assert "no longer needs the other 1 key(s)" in capsys.readouterr().out
    [attempt] = store.Store(job.job.store).letter_files()
    assert cli.main(["letters", path, *flags, "--attempt", attempt]) == 0
    assert "ann-who-errs" in capsys.readouterr().out
    assert cli.main(["letters", path, *flags, "--attempt", "none"]) == 6
    assert cli.main(["rotate", path, *BOOKED]) == 2
    assert "the job encrypts nothing" in capsys.readouterr().err
