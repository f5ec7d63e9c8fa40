"""What is older than the retention goes when a run starts; what is still needed stays, however old it is."""

import datetime as dt
import os
import pathlib
import time

import pytest

from data import errors, store, vault
from pipelines import config, contract, release, retention, rotate, source, status
from tests.pipelines.example import charges, crashing, load, published, view, write_job

KEPT = "--privacy.retention=30d"
DAILY = ["--window.size=1d", "--window.budget_share=0.2"]
EVENTS = [view("ann", "a", "1", "2025-01-01"), view("ann", "a", "2", "never")]


def corner(job: config.Job, part: str) -> set[str]:
    """The files of a part of the operator's corner, less their endings."""
    return {name.partition(".")[0] for name in store.Store(job.job.store).written(part)}


def age(directory: pathlib.Path, days: float) -> None:
    """Makes all files there so old."""
    for path in directory.rglob("*"):
        if path.is_file():
            os.utime(path, (time.time() - days * 86400,) * 2)


def lived(directory: pathlib.Path, days: int, *flags: str) -> config.Job:
    """A job that has released so many days."""
    job = load(write_job(directory, EVENTS), *DAILY, *flags)
    list(release.run_until(job, job.window.start.replace(day=1 + days)))
    return job


def attempts(job: config.Job) -> list[str]:
    return [charge["attempt"] for charge in charges(job)]


def test_what_is_older_goes_but_for_the_record_of_the_newest_release(tmp_path):
    job = lived(tmp_path, 2, KEPT)
    age(tmp_path / "store" / "operator", 31)
    list(release.run_until(job, job.window.start.replace(day=4)))
    _, second, third = attempts(job)
    assert corner(job, "dead_letters") == {third}
    assert corner(job, "runs") == {second, third}
    assert len(published(job)) == 3
    contract.verify(job, None)
    found = status.read(job)
    assert (found.windows.released, found.totals.windows) == (3, 2)


@pytest.mark.parametrize(("flags", "days"), [([KEPT], 29), ([], 3000)], ids=["younger", "no retention"])
def test_what_is_younger_stays_and_without_a_retention_all_does(tmp_path, flags, days):
    job = lived(tmp_path, 2, *flags)
    age(tmp_path / "store" / "operator", days)
    list(release.run_until(job, job.window.start.replace(day=4)))
    assert corner(job, "dead_letters") == corner(job, "runs") == set(attempts(job))


def test_a_job_without_windows_has_a_retention_too(tmp_path):
    job = load(write_job(tmp_path, EVENTS), KEPT)
    release.run(job)
    age(tmp_path / "store" / "operator", 31)
    release.run(job)
    assert (corner(job, "dead_letters"), corner(job, "runs")) == (set(), set(attempts(job)))


def test_letters_that_were_encrypted_anew_are_as_old_as_their_run(tmp_path):
    vault.add_key(tmp_path / "encryption.key")
    lived(tmp_path, 1)
    age(tmp_path / "store" / "operator", 31)
    job = load(tmp_path / "job.toml", *DAILY, KEPT, f"--privacy.encryption_key_file={tmp_path}/encryption.key")
    assert "1 dead letter(s)" in rotate.run(job)[0]
    release.expire(job)
    assert corner(job, "dead_letters") == set()


def test_of_a_release_that_crashed_the_record_stays_and_it_is_gone_on_with(tmp_path):
    job = load(write_job(tmp_path, EVENTS), KEPT)
    with crashing("finish"):
        release.run(job)
    [unfinished] = attempts(job)
    age(tmp_path / "store" / "operator", 31)
    release.expire(job)
    assert (corner(job, "dead_letters"), corner(job, "runs")) == (set(), {unfinished})
    release.run(job)
    assert len(published(job)) == len(charges(job)) == 1


def test_letters_that_are_yet_to_be_sent_stay_with_their_record(tmp_path, monkeypatch):
    job = lived(tmp_path, 3, KEPT)
    unsent, *_ = attempts(job)
    age(tmp_path / "store" / "operator", 31)
    monkeypatch.setattr(source, "unsent", lambda *_: [({"attempt": unsent}, {})])
    release.expire(job)
    assert corner(job, "dead_letters") == {unsent}
    assert corner(job, "runs") == {unsent, attempts(job)[-1]}


def test_what_crashed_runs_were_writing_goes(tmp_path):
    job = lived(tmp_path, 1, KEPT)
    place = tmp_path / "store" / "operator" / "dead_letters"
    for name in ("beam-temp-x/a", ".draft"):
        (place / name).parent.mkdir(exist_ok=True)
        (place / name).write_text("ann")
    release.expire(job)
    assert [path.name for path in place.iterdir()] == [f"{attempts(job)[0]}.jsonl"]


@pytest.mark.parametrize(("days", "is_there"), [(31, False), (29, True)])
def test_a_stream_that_has_ended_leaves_its_files_for_so_long(tmp_path, days, is_there):
    job = lived(tmp_path, 1, KEPT)
    run = pathlib.Path(store.Store(job.job.store).operator("stream")) / "run"
    (run / "flink").mkdir(parents=True)
    for name in ("a.letters", "flink/checkpoint"):
        (run / name).write_text("x")
    age(run, 31)
    os.utime(run / "a.letters", (time.time() - days * 86400,) * 2)
    with store.Store(job.job.store).streaming(goes_on=True):
        release.expire(job)
    assert run.exists()
    release.expire(job)
    assert run.exists() is is_there


def test_while_a_run_has_the_job_in_hand_nothing_is_deleted(tmp_path):
    job = lived(tmp_path, 1, KEPT)
    with release.leased(job, contract.open_ledger(job)), pytest.raises(errors.AlreadyReleasedError):
        release.expire(job)


def test_in_an_object_store_too(tmp_path, bucket, monkeypatch):
    job = load(write_job(tmp_path, EVENTS), KEPT, f"--job.store={bucket}")
    release.run(job)
    release.expire(job)
    assert corner(job, "dead_letters") == set(attempts(job))
    monkeypatch.setattr(retention.sections, "time_of", lambda _: dt.timedelta(seconds=-3600))
    release.expire(job)
    assert (corner(job, "dead_letters"), corner(job, "runs")) == (set(), set(attempts(job)))
