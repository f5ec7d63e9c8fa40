"""A job whose store and contribution book lie in an object store, and the version of its database that hosts pull from it."""

import json

import pytest

from data import database, errors, files, store, tables
from pipelines import cli, config, publish, release, stream, train, versions
from tests.pipelines.example import charges, crashing, load, published, view, write_job
from tests.pipelines.test_windows import DAY, EVENTS, until

MALFORMED = view("", "a", time=DAY.format(1))


@pytest.fixture
def flags(tmp_path, bucket) -> list[str]:
    write_job(tmp_path, [*EVENTS, MALFORMED])
    windows = ["--window.size=1d", "--window.budget_share=0.25", "--window.max_windows_contributed=2"]
    return [*windows, f"--job.store={bucket}/store", f"--privacy.book={bucket}/book"]


@pytest.fixture
def job(tmp_path, flags) -> config.Job:
    return load(tmp_path / "job.toml", *flags)


def counted(job: config.Job) -> list[set[tuple[str, str]]]:
    """Whose counts are above zero, release by release."""
    kept = store.Store(job.job.store)
    found = [kept.read_table(manifest, "item_counts", tables.ITEM_COUNTS).to_pylist() for manifest in published(job)]
    return [{(row["item_id"], row["event_type"]) for row in counts if row["users"]} for counts in found]


def released(job: config.Job, day: int) -> None:
    """Releases the windows that are closed then, trains and publishes."""
    list(release.run_until(job, until(day)))
    train.run(job)
    publish.run(job)


def test_a_job_in_an_object_store_says_what_one_below_a_path_says(job, tmp_path, bucket):
    released(job, 4)
    assert counted(job) == [{("a", "view"), ("b", "view")}, set(), {("c", "view")}]
    assert list(release.run_until(job, until(4))) == []
    kept = store.Store(job.job.store)
    assert kept.attempts() == {charge["attempt"] for charge in charges(job)}
    letters = files.read(files.join(kept.operator("dead_letters"), f"{charges(job)[0]['attempt']}.jsonl")).decode()
    assert [json.loads(line)["reason"] for line in letters.splitlines()] == ["privacy_id is missing"]
    assert not files.names(kept.operator("spill"))
    assert {name.partition("/")[0] for name in files.names(bucket)} == {"store", "book"}
    assert not (tmp_path / "store").exists()
    with database.connect(kept.local()) as connection:
        assert connection.sql("select item_id from item_counts where users > 0").fetchall() == [("c",)]
        assert connection.sql("select version from model_versions").fetchall() == [(1,)]


@pytest.mark.parametrize("step", ["finish", "show"])
def test_a_crash_is_settled_by_the_next_run(job, step):
    with crashing(step):
        list(release.run_until(job, until(2)))
    list(release.run_until(job, until(2)))
    assert counted(job) == [{("a", "view"), ("b", "view")}]
    [charge] = charges(job)
    assert store.Store(job.job.store).attempts() == {charge["attempt"]}


def test_hosts_pull_the_version_that_the_ledger_names_and_old_ones_go(job, flags, tmp_path, capsys):
    job = job.model_copy(update={"publish": job.publish.model_copy(update={"keep_versions": 1})})
    path, host = str(tmp_path / "job.toml"), tmp_path / "host"
    pull = ["pull", path, "--directory", str(host), *flags]
    assert cli.main(pull) == 6
    assert "nothing is published in this store yet" in capsys.readouterr().err
    for day in (2, 3):
        released(job, day)
        assert cli.main(pull) == cli.main(pull) == 0
        assert database.current(host) == versions.active(job) == day - 1
    assert [name[:2] for name in files.names(files.join(job.job.store, "versions"))] == ["2-"]
    assert cli.main(["query", "--store", str(host), "select count(*) as n from items", "--format", "csv"]) == 0
    assert capsys.readouterr().out.endswith("n\n4\n")
    assert cli.main(["pull", path]) == 3
    assert "is a directory: query it where it is" in capsys.readouterr().err


def test_what_is_not_as_the_ledger_names_it_is_not_pulled(job, tmp_path):
    released(job, 2)
    [name] = files.names(files.join(job.job.store, "versions"))
    file = files.join(job.job.store, "versions", name)
    files.write(file, files.read(file)[:-1] + b"x")
    with pytest.raises(errors.BadInputError, match="version 1 is not what the ledger names"):
        versions.pull(job, tmp_path / "host")
    files.delete(file)
    with pytest.raises(errors.BadInputError, match="version 1, which the ledger names, is missing"):
        versions.pull(job, tmp_path / "host")
    assert database.current(tmp_path / "host") == 0


@pytest.mark.parametrize("is_url", [True, False], ids=["object store", "path"])
def test_a_publisher_that_was_overtaken_looks_again(tmp_path, request, monkeypatch, is_url):
    """It had read what there was before another one published what came since."""
    path = write_job(tmp_path, EVENTS)
    flags = ["--window.size=1d", "--window.budget_share=0.25"]
    job = load(path, *flags, *([f"--job.store={request.getfixturevalue('bucket')}"] if is_url else []))
    released(job, 2)
    ours, seen = versions.publish, []

    def slowly(job, contents, before):
        seen.append(before)
        if len(seen) == 1:
            released(job, 4)
        return ours(job, contents, before)

    monkeypatch.setattr(versions, "publish", slowly)
    publish.run(job)
    assert seen == [1, 1, 2]
    with database.connect(store.Store(job.job.store).local()) as connection:
        assert connection.sql("select item_id from item_counts where users > 0").fetchall() == [("c",)]
    assert versions.active(job) == 3


def test_a_stream_needs_a_path(job):
    with pytest.raises(config.JobFileError, match="a stream needs"):
        stream.run(job)
