"""Windows that are released one after the other: each once, each charged, none from data alone."""

import datetime as dt

import pytest

from data import errors, ledger, store, tables
from pipelines import cli, config, contract, release
from tests.pipelines.example import charges, crashing, load, published, view, write_job

DAY = "2025-01-{:02}T12:00"
EVENTS = [view("ann", "a", "1", DAY.format(1)), view("bob", "b", "2", DAY.format(1)), view("ann", "c", "3", DAY.format(3))]
FLAGS = ["--window.size=1d", "--window.budget_share=0.25"]


def until(day: int, hour: int = 0) -> dt.datetime:
    return dt.datetime(2025, 1, day, hour, tzinfo=dt.UTC)


def days(job: config.Job) -> list[str]:
    """The days whose windows are charged, in order."""
    return [charge["window_start"][8:10] for charge in charges(job)]


def test_every_closed_window_is_released_once_in_order_and_a_week_off_is_caught_up(tmp_path):
    job = load(write_job(tmp_path, EVENTS), *FLAGS)
    assert len(list(release.run_until(job, until(2)))) == 1
    assert list(release.run_until(job, until(2, 23))) == []
    assert len(list(release.run_until(job, until(4)))) == 2
    assert days(job) == ["01", "02", "03"]
    assert len(published(job)) == 3


def test_a_window_holds_its_own_events_and_an_empty_one_is_released_and_charged(tmp_path):
    job = load(write_job(tmp_path, EVENTS), *FLAGS)
    list(release.run_until(job, until(4)))
    found = []
    for manifest in published(job):
        counts = store.Store(job.job.store).read_table(manifest, "item_counts", tables.ITEM_COUNTS).to_pylist()
        found.append({(row["item_id"], row["event_type"]) for row in counts if row["users"]})
    assert found == [{("a", "view"), ("b", "view")}, set(), {("c", "view")}]


def test_a_closed_window_stays_closed_whatever_arrives_later(tmp_path):
    path = write_job(tmp_path, EVENTS)
    list(release.run_until(load(path, *FLAGS), until(2)))
    write_job(tmp_path, [*EVENTS, view("cat", "d", "9", DAY.format(1))])
    assert list(release.run_until(load(path, *FLAGS), until(2))) == []
    assert days(load(path, *FLAGS)) == ["01"]


def test_a_window_closes_when_its_slack_is_over(tmp_path):
    job = load(write_job(tmp_path, EVENTS), *FLAGS, "--window.slack_seconds=3600")
    assert list(release.run_until(job, until(2))) == []
    assert len(list(release.run_until(job, until(2, 1)))) == 1


def test_a_period_has_room_for_as_many_windows_as_its_shares(tmp_path):
    job = load(write_job(tmp_path, EVENTS, epsilon=1.0), *FLAGS)
    with pytest.raises(ledger.BudgetRefusedError, match=r"has 0\.0% left, and this release asks for 25\.0% of it"):
        list(release.run_until(job, until(20)))
    assert days(job) == ["01", "02", "03", "04"]
    with pytest.raises(ledger.BudgetRefusedError):
        list(release.run_until(job, until(20)))
    [spent] = contract.open_ledger(job).spent("test")
    assert spent.releases == 4


def test_a_time_to_come_is_refused(tmp_path):
    job = load(write_job(tmp_path, EVENTS), *FLAGS, "--window.start=2090-01-01", "--window.end=2090-02-01")
    with pytest.raises(config.JobFileError, match="is yet to come"):
        list(release.run_until(job, dt.datetime(2090, 1, 5, tzinfo=dt.UTC)))
    assert charges(job) == []


def test_a_window_that_a_crash_left_hidden_is_shown_by_the_next_run(tmp_path):
    job = load(write_job(tmp_path, EVENTS), *FLAGS)
    with crashing("show"):
        list(release.run_until(job, until(2)))
    assert published(job) == []
    assert list(release.run_until(job, until(2))) == []
    assert len(published(job)) == len(charges(job)) == 1


def test_a_window_whose_store_is_gone_is_not_passed_over(tmp_path):
    path = write_job(tmp_path, EVENTS)
    list(release.run_until(load(path, *FLAGS), until(2)))
    with pytest.raises(errors.AlreadyReleasedError, match="put that store back"):
        list(release.run_until(load(path, *FLAGS, "--job.store", str(tmp_path / "elsewhere")), until(2)))


def test_a_run_that_ended_before_the_database_was_there_is_finished_by_the_next(tmp_path):
    path = write_job(tmp_path, EVENTS)
    list(release.run_until(load(path, *FLAGS), until(2)))
    for _ in range(2):
        assert cli.main(["run", str(path), *FLAGS, "--until", "2025-01-02"]) == 0
    assert [version.name for version in (tmp_path / "store" / "versions").glob("*.duckdb")] == ["1.duckdb"]


def test_each_window_is_charged_to_its_own_period(tmp_path):
    flags = ["--window.size=1w", "--window.budget_share=1", "--privacy.period=week", "--window.start=2024-12-30"]
    job = load(write_job(tmp_path, EVENTS, epsilon=1.0), *flags)
    list(release.run_until(job, until(14)))
    assert [(spent.period, spent.releases) for spent in contract.open_ledger(job).spent("test")] == [
        ("2025-W01", 1),
        ("2025-W02", 1),
    ]


def test_what_was_released_is_published_though_a_later_window_is_refused(tmp_path):
    path = write_job(tmp_path, EVENTS, epsilon=1.0)
    load(path, *FLAGS)
    assert cli.main(["run", str(path), *FLAGS, "--until", "2025-01-07"]) == 7
    assert (tmp_path / "store" / "current.duckdb").exists()
    load(path, *FLAGS, "--window.end=2025-01-05")
    assert cli.main(["run", str(path), *FLAGS, "--window.end=2025-01-05", "--until", "now"]) == 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--window.size=1d"], "say --until now"),
        (["--until", "now"], "--until is for jobs with windows"),
        (["--window.size=1d", "--until", "tomorrow"], "must be now, or a time"),
        (["--window.size=1d", "--until", "now", "--new-release"], "no --new-release"),
        (["--window.size=1x", "--until", "now"], 'must be "all" or a number of'),
        (["--window.size=8d", "--privacy.period=week", "--until", "now"], "is longer than a period"),
    ],
    ids=["no until", "no windows", "no time", "new release", "no size", "too long"],
)
def test_what_makes_no_sense_exits_with_2(tmp_path, capsys, flags, message):
    path = write_job(tmp_path, EVENTS)
    load(path)
    assert cli.main(["run", str(path), *flags]) == 2
    assert message in capsys.readouterr().err
