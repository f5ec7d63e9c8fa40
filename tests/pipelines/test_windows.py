"""Windows that are released one after the other: each once, each charged, none from data alone."""

import datetime as dt
import time

import pytest

from data import book, errors, ledger, store, tables
from pipelines import cli, config, contract, release, source, status
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


def test_sliding_windows_have_an_event_each_that_it_fits_and_are_charged_each(tmp_path):
    job = load(write_job(tmp_path, EVENTS), "--window.size=2d", "--window.every=1d", "--window.budget_share=0.25")
    list(release.run_until(job, until(5)))
    found = []
    for manifest in published(job):
        counts = store.Store(job.job.store).read_table(manifest, "item_counts", tables.ITEM_COUNTS).to_pylist()
        found.append({row["item_id"] for row in counts if row["users"]})
    assert found == [{"a", "b"}, {"c"}, {"c"}]
    assert days(job) == ["01", "02", "03"]


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


def test_a_job_that_another_machine_has_in_hand_is_left_alone_until_its_lease_is_over(tmp_path):
    job = load(write_job(tmp_path, EVENTS), *FLAGS)
    account = contract.open_ledger(job)
    fence = account.lease("test/test", "another machine", 600)
    with pytest.raises(errors.AlreadyReleasedError, match=r"has this job in hand, for \d+ s"):
        list(release.run_until(job, until(2)))
    account.renew("test/test", fence, 0)
    assert len(list(release.run_until(job, until(2)))) == 1
    assert not account.renew("test/test", fence, 600)


def test_a_run_whose_lease_was_taken_spends_nothing(tmp_path, monkeypatch):
    job = load(write_job(tmp_path, EVENTS), *FLAGS)
    account, event_rules = contract.open_ledger(job), source.event_rules

    def overslept(*arguments):
        account.lease("test/test", "another machine", 600)
        return event_rules(*arguments)

    monkeypatch.setattr(release, "LEASE_SECONDS", 0.0)
    monkeypatch.setattr(source, "event_rules", overslept)
    with pytest.raises(errors.AlreadyReleasedError, match="another run has taken this job over"):
        list(release.run_until(job, until(2)))
    assert charges(job) == []


def test_a_run_holds_its_lease_for_as_long_as_it_takes(tmp_path, monkeypatch):
    job = load(write_job(tmp_path, EVENTS), *FLAGS)
    monkeypatch.setattr(release, "LEASE_SECONDS", 0.6)
    account, held = contract.open_ledger(job), []
    event_rules = source.event_rules

    def slow(*arguments):
        time.sleep(1.2)
        with pytest.raises(errors.AlreadyReleasedError):
            account.lease("test/test", "another machine", 600)
        held.append(True)
        return event_rules(*arguments)

    monkeypatch.setattr(source, "event_rules", slow)
    assert len(list(release.run_until(job, until(2)))) == len(held) == 1


EVERY_DAY = [
    *(view("ann", "a", f"a{day}", DAY.format(day)) for day in range(1, 8)),
    *(view("bob", "b", f"b{day}", DAY.format(day)) for day in (2, 5, 6)),
]
TWICE = ["--window.size=1d", "--window.max_windows_contributed=2", "--privacy.period=month"]
SLIDING = ["--window.size=2d", "--window.every=1d", "--window.max_windows_contributed=2"]


def seen(job: config.Job) -> list[str]:
    """Whose items have users in each window, in order: `a` is ann's, `b` bob's."""
    found = []
    for manifest in published(job):
        counts = store.Store(job.job.store).read_table(manifest, "item_counts", tables.ITEM_COUNTS).to_pylist()
        found.append("".join(sorted({row["item_id"] for row in counts if row["users"]})))
    return found


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ([], ["a", "ab", "", "", "b", "", ""]),
        (["--window.min_separation=4"], ["a", "b", "", "", "a", "b", ""]),
    ],
    ids=["first come", "separated"],
)
def test_a_user_is_in_so_many_windows_and_no_more(tmp_path, flags, expected):
    job = load(write_job(tmp_path, EVERY_DAY), *TWICE, *flags)
    list(release.run_until(job, until(8)))
    assert seen(job) == expected


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--window.min_separation=2"], ["ab", "", "a", "b", "", ""]),
        (["--window.max_windows_contributed=4"], ["ab", "ab", "a", "ab", "b", ""]),
    ],
    ids=["separated", "more"],
)
def test_a_user_is_in_so_many_sliding_windows_and_no_more(tmp_path, flags, expected):
    """Of two days, a day apart: an event in the middle spends twice."""
    job = load(write_job(tmp_path, EVERY_DAY), *SLIDING, *flags)
    list(release.run_until(job, until(8)))
    assert seen(job) == expected
    most = job.window.max_windows_contributed
    said = "\n".join(contract.show(job))
    assert f"test has released 6 of 30 planned windows, each user in at most {most} of them" in said
    [budget] = status.read(job, until(8)).budget
    assert budget.windows_left == budget.windows_to_come == 24
    contract.verify(job, None)


def test_a_series_is_charged_once_and_a_window_costs_its_part(tmp_path):
    job = load(write_job(tmp_path, EVERY_DAY, epsilon=1.0), *TWICE)
    list(release.run_until(job, until(4)))
    account = contract.open_ledger(job)
    [spent] = account.spent("test")
    assert (spent.period, spent.releases) == ("2025-01", 3)
    assert 1 - 1e-8 < spent.cost / account.known("test").capacity <= 1
    assert "test has released 3 of 31 planned windows, each user in at most 2 of them" in "\n".join(contract.show(job))
    assert "2025-01: 31 windows, each user in at most 2" in "\n".join(contract.history(job))
    contract.verify(job, None)


def test_a_window_begun_again_after_a_crash_has_the_users_it_had(tmp_path):
    path = write_job(tmp_path, EVERY_DAY)
    with crashing("finish"):
        list(release.run_until(load(path, *TWICE), until(2)))
    write_job(tmp_path, [*EVERY_DAY, view("cat", "c", "c1", DAY.format(1))])
    list(release.run_until(load(path, *TWICE), until(4)))
    assert seen(load(path, *TWICE)) == ["a", "ab", ""]
    contract.verify(load(path, *TWICE), None)


@pytest.mark.parametrize(
    ("owner", "step"),
    [(book.Book, "admit"), (book.Book, "finish"), (ledger.Ledger, "book"), (book.Book, "admitted"), (ledger.Ledger, "publish")],
    ids=["admit", "finish page", "book", "keep", "publish"],
)
@pytest.mark.parametrize("is_done", [False, True], ids=["before", "after"])
def test_a_crash_around_the_book_lets_nobody_in_twice(tmp_path, monkeypatch, owner, step, is_done):
    job = load(write_job(tmp_path, EVERY_DAY), *TWICE)
    original = getattr(owner, step)
    with monkeypatch.context() as crash:
        crash.setattr(owner, step, lambda *given: (original(*given) if is_done else None, 1 / 0))
        with pytest.raises(Exception, match="division by zero"):
            list(release.run_until(job, until(2)))
    list(release.run_until(job, until(3)))
    assert seen(job) == ["a", "ab"]
    contract.verify(job, None)


def test_each_period_has_a_book_of_its_own_that_goes_when_it_closes(tmp_path):
    flags = ["--window.size=1d", "--window.max_windows_contributed=1", "--privacy.period=week", "--window.start=2024-12-30"]
    job = load(write_job(tmp_path, EVERY_DAY), *flags)
    list(release.run_until(job, until(8)))
    assert seen(job) == ["", "", "a", "b", "", "", "", "ab", ""]
    kept = contract.book_path(job)
    assert len(list(kept.iterdir())) == 2
    contract.close(job, "2025-W01")
    contract.verify(job, None)
    assert len(list(kept.iterdir())) == 1


@pytest.mark.parametrize("what", ["all", "page", "shard"])
def test_a_book_that_is_lost_is_not_begun_anew(tmp_path, what):
    job = load(write_job(tmp_path, EVERY_DAY), *TWICE)
    list(release.run_until(job, until(2)))
    kept = contract.book_path(job)
    for path in kept.rglob({"all": "*.*", "page": "*.json", "shard": "*.arrow"}[what]):
        path.unlink()
    with pytest.raises(book.BookError, match="Put the book back"):
        contract.verify(job, None)
    with pytest.raises(book.BookError, match="Put the book back"):
        list(release.run_until(job, until(3)))
    assert len(published(job)) == 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--window.size=1d"], "say --until now"),
        (["--until", "now"], "--until is for jobs with windows"),
        (["--window.size=1d", "--until", "tomorrow"], "must be now, or a time"),
        (["--window.size=1d", "--until", "now", "--new-release"], "no --new-release"),
        (["--window.size=1x", "--until", "now"], 'must be "all" or a number of'),
        (["--window.size=8d", "--privacy.period=week", "--until", "now"], "is longer than a period"),
        ([*TWICE, "--window.size=all"], "is for windows that follow one another"),
        ([*TWICE, "--window.size=7d", "--until", "now"], "don't each lie in one period"),
        ([*TWICE, "--runner.buckets=3", "--until", "now"], "the book has its own number"),
        ([*TWICE, "--privacy.ledger=postgresql+psycopg://h/d", "--until", "now"], "privacy.book: must name a directory"),
        (["--window.size=1d", "--window.min_separation=2", "--until", "now"], "min_separation needs"),
    ],
    ids=[
        "no until",
        "no windows",
        "no time",
        "new release",
        "no size",
        "too long",
        "one window",
        "two periods",
        "buckets",
        "no book",
        "separation alone",
    ],
)
def test_what_makes_no_sense_exits_with_2(tmp_path, capsys, flags, message):
    path = write_job(tmp_path, EVENTS)
    load(path)
    assert cli.main(["run", str(path), *flags]) == 2
    assert message in capsys.readouterr().err
