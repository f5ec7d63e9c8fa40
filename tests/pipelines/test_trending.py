"""Counts of short windows beside a job's own windows: what they count, when, and what they cost."""

import datetime as dt
from collections import Counter, defaultdict

import pytest

from data import database, errors, ledger, store, tables
from pipelines import cli, config, contract, metrics, release, status
from tests.pipelines.example import charges, crashing, load, published, view, write_job

HOURS = [f"2025-01-0{day}T{hour:02}:30" for day in (1, 2) for hour in range(24)]
EVENTS = [
    *(view(f"u{i % 7}", "abc"[i % 3], f"e{i}", HOURS[i % 48]) for i in range(300)),
    *(view("greedy", item, f"g{i}", HOURS[2]) for i, item in enumerate("aaaabbbb")),
]
FLAGS = ["--window.size=1d", "--window.budget_share=0.2", "--trending.size=6h", "--trending.budget_share=0.05"]


def until(day: int, hour: int = 0) -> dt.datetime:
    return dt.datetime(2025, 1, day, hour, tzinfo=dt.UTC)


def counts(job: config.Job) -> dict[tuple[str, str], dict[str, tuple[int, int]]]:
    """Users and events by item of each release in the store, by its window."""
    kept, found = store.Store(job.job.store), {}
    for manifest in published(job):
        rows = kept.read_table(manifest, "item_counts", tables.ITEM_COUNTS).to_pylist()
        window = (manifest["window_start"][5:13], manifest["window_end"][5:13])
        found[window] = {row["item_id"]: (row["users"], row["events"]) for row in rows if row["users"]}
    return found


def expected(size: int, most_events: int) -> dict[tuple[str, str], dict[str, tuple[int, int]]]:
    """The same of windows of so many hours, each user with at most so many events on an item."""
    events: dict[tuple[dt.datetime, str], Counter[str]] = defaultdict(Counter)
    for line in EVENTS:
        _, user, item, _, _, time, _ = line.split(",")
        hours = (dt.datetime.fromisoformat(time) - dt.datetime(2025, 1, 1)) // dt.timedelta(hours=size) * size
        events[dt.datetime(2025, 1, 1) + dt.timedelta(hours=hours), item][user] += 1
    found: dict[tuple[str, str], dict[str, tuple[int, int]]] = defaultdict(dict)
    for (start, item), users in events.items():
        window = (start.isoformat()[5:13], (start + dt.timedelta(hours=size)).isoformat()[5:13])
        found[window][item] = (len(users), sum(min(each, most_events) for each in users.values()))
    return found


def test_short_windows_are_counted_beside_the_jobs_own_in_the_order_in_which_they_end(tmp_path):
    job = load(write_job(tmp_path, EVENTS), *FLAGS, "--trending.max_contributions_per_partition=3")
    found = [part.is_trending for part, _ in release.run_until(job, until(3))]
    assert found == 2 * [True, True, True, False, True]
    assert counts(job) == {**expected(24, 2), **expected(6, 3)}
    assert [each["job"] for each in charges(job)] == ["test/trending" if short else "test" for short in found]
    assert list(release.run_until(job, until(3))) == []


def test_short_windows_pay_for_counts_alone(tmp_path):
    """Four short windows at a twentieth of the budget each, and one of the job's own at a fifth."""
    job = load(write_job(tmp_path, EVENTS, epsilon=1.0), *FLAGS)
    list(release.run_until(job, until(2)))
    known, [spent] = contract.open_ledger(job).known("test"), contract.open_ledger(job).spent("test")
    assert spent.cost == pytest.approx((4 * 0.05 + 0.2) * known.capacity)
    short, whole = ([each["name"] for each in charges(job)[place]["charge"]["mechanisms"]] for place in (0, 3))
    assert short == ["counts.users", "counts.events"]
    assert whole == ["selection", "counts.users", "counts.events", "cooccurrence"]
    contract.verify(job, None)


@pytest.mark.parametrize(
    ("shares", "released"),
    [
        (["--window.budget_share=0.9", "--trending.budget_share=0.01"], {"test": 1, "test/trending": 8}),
        (["--window.budget_share=0.05", "--trending.budget_share=0.3"], {"test": 2, "test/trending": 3}),
    ],
)
def test_where_one_kind_of_window_is_refused_the_other_goes_on(tmp_path, shares, released):
    job = load(write_job(tmp_path, EVENTS, epsilon=1.0), *FLAGS, *shares)
    with pytest.raises(ledger.BudgetRefusedError):
        list(release.run_until(job, until(3)))
    assert Counter(each["job"] for each in charges(job)) == released


def test_status_tells_of_both_kinds_of_windows(tmp_path):
    job = load(write_job(tmp_path, EVENTS), *FLAGS, "--alerts.max_delay_seconds=3600")
    list(release.run_until(job, until(2)))
    found = status.read(job, until(2, 7))
    assert (found.windows.released, found.windows.waiting) == (1, 0)
    assert (found.trending.windows.released, found.trending.windows.waiting) == (4, 1)
    assert [alert.name for alert in found.alerts if alert.is_firing] == ["max_delay_seconds", "trending.max_delay_seconds"]
    assert sum(line.startswith("trending: windows: 4 released, 1 waiting") for line in status.as_text(found)) == 1
    figures = {metric.name: [sample.value for sample in metric.samples] for metric in metrics.metrics(found)}
    assert (figures["sottovoce_windows"], figures["sottovoce_trending_windows"]) == ([1, 0, 0], [4, 1, 0])


def test_each_kind_of_window_has_a_contribution_book_of_its_own(tmp_path):
    flags = ["--window.max_windows_contributed=1", "--trending.max_windows_contributed=2", "--trending.budget_share=0.5"]
    events = [view("ann", "a", f"{time}", time) for time in HOURS] + [view("bob", "b", "1", HOURS[40])]
    job = load(write_job(tmp_path, events), *FLAGS, "--window.budget_share=0.5", "--trending.size=12h", *flags)
    list(release.run_until(job, until(3)))
    found = counts(job)
    assert {window: items["a"] for window, items in found.items() if "a" in items} == {
        ("01-01T00", "01-02T00"): (1, 2),
        ("01-01T00", "01-01T12"): (1, 5),
        ("01-01T12", "01-02T00"): (1, 5),
    }
    assert [window for window, items in found.items() if "b" in items] == [("01-02T00", "01-03T00"), ("01-02T12", "01-03T00")]
    [spent] = contract.open_ledger(job).spent("test")
    assert spent.cost <= contract.open_ledger(job).known("test").capacity


@pytest.mark.parametrize("step", ["finish", "show"])
def test_a_short_window_that_a_crash_left_is_finished_by_the_next_run_at_no_cost(tmp_path, step):
    job = load(write_job(tmp_path, EVENTS), *FLAGS)
    with crashing(step):
        list(release.run_until(job, until(1, 6)))
    assert len(charges(job)) == 1
    list(release.run_until(job, until(1, 12)))
    assert len(charges(job)) == len(published(job)) == 2
    assert counts(job) == dict(sorted(expected(6, 5).items())[:2])


def test_without_a_catalogue_short_windows_count_what_the_job_released_before(tmp_path):
    """Item c is used on the second day alone: it is known from the third on."""
    days = {"a": (1, 2, 3), "b": (1, 3), "c": (2, 3)}
    events = [
        view(f"u{i}", item, f"{item}{i}{day}", f"2025-01-0{day}T13:00")
        for i in range(30)
        for item in days
        for day in days[item]
    ]
    job = load(write_job(tmp_path, events, catalogue=False), *FLAGS)
    list(release.run_until(job, until(3, 18)))
    short = {window: set(items) for window, items in counts(job).items() if window[1][6:] != "00"}
    assert short == {
        ("01-02T00", "01-02T06"): set(),
        ("01-02T06", "01-02T12"): set(),
        ("01-02T12", "01-02T18"): {"a"},
        ("01-03T00", "01-03T06"): set(),
        ("01-03T06", "01-03T12"): set(),
        ("01-03T12", "01-03T18"): {"a", "c"},
    }


def test_a_short_window_without_known_items_is_refused_unspent(tmp_path):
    job = load(write_job(tmp_path, EVENTS, catalogue=False), *FLAGS)
    for _ in range(2):
        with pytest.raises(errors.NothingThereError, match="isn't known which items"):
            release.run_window(job.parts[1], 0, release.source.find)
    assert charges(job) == []
    [record] = store.Store(job.job.store).run_records().values()
    assert "isn't known which items" in record["refused"]
    assert status.read(job, until(2, 7)).trending.windows.refused == 1


@pytest.mark.parametrize(
    ("catalogue", "start", "first"),
    [
        (True, None, "01-01T00"),
        (True, "2025-01-02T09:00", "01-02T09"),
        (False, None, "01-02T00"),
        (False, "2025-01-01T09:00", "01-02T03"),
        (False, "2025-01-02T09:00", "01-02T09"),
    ],
)
def test_short_windows_start_when_they_are_told_to_and_their_items_are_known(tmp_path, catalogue, start, first):
    job = load(write_job(tmp_path, [], catalogue=catalogue), *FLAGS, *([f"--trending.start={start}"] if start else []))
    assert job.parts[1].window.start.isoformat()[5:13] == first


def test_without_the_section_short_windows_are_not_shown_any_more(tmp_path):
    path = write_job(tmp_path, EVENTS)
    load(path, *FLAGS)
    for flags, shown in ((FLAGS, 4), (FLAGS[:2], 0)):
        day = 2 if shown else 3
        assert cli.main(["run", str(path), *flags, "--until", f"2025-01-0{day}"]) == 0
        with database.connect(tmp_path / "store") as connection:
            assert connection.sql("select count(distinct window_start) from trending_counts").fetchall() == [(shown,)]


def test_what_is_trending_is_published_before_there_is_a_model_and_each_release_shows_it_anew(tmp_path):
    path = write_job(tmp_path, EVENTS)
    load(path, *FLAGS)
    ask = "from (select distinct strftime(window_end, '%m-%dT%H') from trending()), (select count(*) from model_versions)"
    for time, end, models in (("06:00", "01-01T06", 0), ("12:00", "01-01T12", 0), ("24:00", "01-02T00", 1)):
        day, hour = ("2025-01-02", "00:00") if time == "24:00" else ("2025-01-01", time)
        assert cli.main(["run", str(path), *FLAGS, "--trending.keep_windows=2", "--until", f"{day}T{hour}"]) == 0
        with database.connect(tmp_path / "store") as connection:
            assert connection.sql(ask).fetchall() == [(end, models)]
            kept = connection.sql("select count(distinct window_start) from trending_counts").fetchall()
            assert kept == [(1 if time == "06:00" else 2,)]
            [sections] = connection.sql("select list(distinct section order by section) from release_report").fetchall()
    assert sections == (["cooccurrence", "counts", "privacy", "selection", "trending"],)
