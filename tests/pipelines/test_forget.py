"""Forgetting a user: raw traces go, events to come are dropped, what bounds the loss stays, and nobody's id is said."""

import io
import json
import pathlib
import stat
import sys

import pytest

from data import errors, files, store, vault
from pipelines import cli, config, contract, forget, release, rotate
from tests.pipelines.example import load, published, view, write_job
from tests.pipelines.test_rotate import BOOKED, legible, pseudonyms, released
from tests.pipelines.test_windows import seen

EVENTS = [
    *(view("ann-9", "a", "1", f"2025-01-0{day}") for day in (1, 2)),
    *(view("bob-9", "b", "2", f"2025-01-0{day}") for day in (1, 2)),
    view("ann-9", "a", "3", "never"),
    view("bob-9", "a", "4", "never"),
]


def job_of(directory: pathlib.Path, *flags: str, events: list[str] = EVENTS) -> config.Job:
    """A job of windows with a list of opt-outs."""
    path = write_job(directory, events)
    (directory / "out.txt").touch(mode=0o600)
    return load(path, *BOOKED, f"--privacy.opt_out={directory}/out.txt", *flags)


@pytest.mark.parametrize("is_encrypted", [False, True], ids=["plain", "encrypted"])
def test_raw_traces_go_and_those_of_others_stay(tmp_path, is_encrypted):
    vault.add_key(tmp_path / "encryption.key")
    job = job_of(tmp_path, *([f"--privacy.encryption_key_file={tmp_path}/encryption.key"] * is_encrypted))
    released(job, 2)
    done = forget.run(job, ["ann-9"])
    assert done[0].startswith("opted out: 1 of 1 id(s)")
    assert done[1].startswith("deleted: 1 dead letter(s)")
    assert not any("ann" in line for line in done)
    assert legible(tmp_path, b"ann-9") == {"out.txt"}
    assert [json.loads(letter)["row"] for letter in rotate.show(job, None)] == [6]


def test_events_to_come_are_dropped_and_a_return_brings_no_fresh_budget(tmp_path):
    job = job_of(tmp_path, "--window.max_windows_contributed=1")
    released(job, 2)
    before = pseudonyms(job)
    forget.run(job, ["ann-9"])
    assert sorted(pseudonyms(job)) == sorted(before)
    released(job, 3)
    # A return: she is opted in again.
    (tmp_path / "out.txt").write_text("")
    again = [view("ann-9", "a", "5", "2025-01-03"), view("cat-9", "c", "6", "2025-01-03")]
    released(job_of(tmp_path, "--window.max_windows_contributed=1", events=[*EVENTS, *again]), 4)
    assert seen(job) == ["ab", "", "c"]
    assert len(published(job)) == 3


def test_of_those_who_were_not_forgotten_the_next_window_counts(tmp_path):
    job = job_of(tmp_path)
    released(job, 2)
    forget.run(job, ["ann-9"])
    released(job, 3)
    assert seen(job) == ["ab", "b"]


def test_forgetting_again_or_whom_nobody_knows_changes_nothing_else(tmp_path):
    job = job_of(tmp_path)
    released(job, 2)
    forget.run(job, ["ann-9"])
    found = {path: path.read_bytes() for path in (tmp_path / "store" / "operator").rglob("*") if path.is_file()}
    assert forget.run(job, ["ann-9"])[:1] == ["opted out: 0 of 1 id(s); the others were before. Events from now on are dropped"]
    assert forget.run(job, ["nobody"])[1].startswith("deleted: 0 dead letter(s), and 0 file(s)")
    assert {path: path.read_bytes() for path in found} == found
    assert (tmp_path / "out.txt").read_text() == "ann-9\nnobody\n"


@pytest.mark.parametrize(
    ("before", "after"), [("", "ann\n"), ("bob", "bob\nann\n"), ("bob\r\n", "bob\r\nann\n"), ("ann", "ann")], ids=repr
)
def test_the_list_of_opt_outs_keeps_what_it_had_and_its_rights(tmp_path, before, after):
    job = job_of(tmp_path)
    (tmp_path / "out.txt").write_bytes(before.encode())
    (tmp_path / "out.txt").chmod(0o640)
    forget.run(job, ["ann"])
    assert (tmp_path / "out.txt").read_bytes().decode() == after
    assert stat.S_IMODE((tmp_path / "out.txt").stat().st_mode) == 0o640


def test_what_runs_and_streams_have_left_goes_whole(tmp_path):
    job = job_of(tmp_path)
    kept = store.Store(job.job.store)
    corner = pathlib.Path(kept.operator())
    lost = [
        "spill/run/a.arrow",
        "stream/run/b.arrow",
        "stream/run/flink/1/state",
        "dead_letters/beam-temp-x/c",
        "dead_letters/.d",
    ]
    for name in lost:
        (corner / name).parent.mkdir(parents=True, exist_ok=True)
        (corner / name).write_text("pseudonym")
    assert "and 3 file(s) of runs and streams" in forget.run(job, ["ann-9"])[1]
    assert legible(corner, b"pseudonym") == set()


def test_while_it_runs_or_is_streamed_nothing_is_done(tmp_path):
    job = job_of(tmp_path)
    with store.Store(job.job.store).streaming(), pytest.raises(errors.AlreadyReleasedError, match="streamed already"):
        forget.run(job, ["ann-9"])
    with release.leased(job, contract.open_ledger(job)), pytest.raises(errors.AlreadyReleasedError, match="running"):
        forget.run(job, ["ann-9"])
    assert (tmp_path / "out.txt").read_text() == ""


def test_a_crash_after_the_opt_out_leaves_letters_whole_and_the_next_try_ends_it(tmp_path, monkeypatch):
    job = job_of(tmp_path)
    released(job, 2)
    with monkeypatch.context() as crash:
        crash.setattr(store.Store, "letter_files", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            forget.run(job, ["ann-9"])
    assert len(list(rotate.show(job, None))) == 2
    assert forget.run(job, ["ann-9"])[1].startswith("deleted: 1 dead letter(s)")


def test_without_a_list_of_opt_outs_or_an_id_it_is_refused(tmp_path):
    job = load(write_job(tmp_path, EVENTS))
    with pytest.raises(config.JobFileError, match=r"privacy\.opt_out: the job has no list of opt-outs"):
        forget.run(job, ["ann-9"])
    with pytest.raises(config.JobFileError, match="no id is given"):
        forget.run(job, ["", " "])


def test_in_an_object_store_letters_go_too(tmp_path, bucket):
    job = job_of(tmp_path, f"--job.store={bucket}")
    released(job, 2)
    assert forget.run(job, ["ann-9"])[1].startswith("deleted: 1 dead letter(s)")
    [name] = store.Store(bucket).letter_files().values()
    assert b"ann-9" not in files.read(name)


@pytest.mark.parametrize("way", ["a file", "standard input"])
def test_the_command_takes_ids_by_file_or_standard_input_and_shows_none(tmp_path, capfd, monkeypatch, way):
    released(job_of(tmp_path), 2)
    flags = [*BOOKED, f"--privacy.opt_out={tmp_path}/out.txt"]
    (tmp_path / "ids").write_text("\ufeffann-9\r\n")
    if way == "a file":
        flags += ["--ids", str(tmp_path / "ids")]
    else:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"ann-9\n")))
    assert cli.main(["forget", str(tmp_path / "job.toml"), *flags]) == 0
    shown = capfd.readouterr()
    assert "deleted: 1 dead letter(s)" in shown.out
    assert "until the period closes" in shown.out
    assert "your source files" in shown.out
    assert "ann-9" not in shown.out + shown.err


def test_an_id_as_an_argument_is_no_argument(tmp_path, capsys):
    with pytest.raises(SystemExit):
        cli.main(["forget", str(tmp_path / "job.toml"), "ann-9", "--ids"])
    assert cli.main(["forget", str(write_job(tmp_path, [])), "--ids", str(tmp_path / "none")]) == 2
    assert "can't be read (No such file or directory)" in capsys.readouterr().err
