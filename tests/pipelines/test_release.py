"""The release job as a whole: what it counts, what nobody can do to others, and what it charges."""

import contextlib
import datetime as dt
import json
import math
import shutil
import sqlite3

import dp_accounting
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from dp_accounting import pld
from scipy import stats

from data import database, errors, ledger, store, tables
from pipelines import cli, config, contract, release
from tests.pipelines.example import EXACT, charges, crashing, load, published, view, write_job
from transforms.ingest import pseudonym
from transforms.privacy import budget
from transforms.release import cooccurrence

EVERYBODY = [
    view("ann", "a", "1"),
    view("ann", "b", "2"),
    view("ann", "b", "3", kind="buy"),
    view("bob", "a", "4"),
    view("cat", "c", "5"),
]


def released(job) -> dict[str, dict]:
    """Runs the job; its tables as rounded figures by key."""
    release.run(job)
    kept = store.Store(job.job.store)
    [manifest] = published(job)
    items = kept.read_table(manifest, "items", tables.ITEMS).sort_by("position")["item_id"].to_pylist()
    counts = kept.read_table(manifest, "item_counts", tables.ITEM_COUNTS).to_pylist()
    pairs = kept.read_table(manifest, "item_pairs", tables.ITEM_PAIRS).to_pylist()
    return {
        "counts": {(row["item_id"], row["event_type"]): (row["users"], row["events"]) for row in counts},
        "pairs": {tuple(sorted((items[row["row"]], items[row["col"]]))): round(row["value"], 2) for row in pairs},
    }


def nonzero(figures: dict) -> dict:
    return {key: value for key, value in figures.items() if value not in ((0, 0), 0)}


def test_every_count_and_pair_is_exact_but_for_noise(tmp_path):
    found = released(load(write_job(tmp_path, EVERYBODY)))
    counts = {("a", "view"): (2, 2), ("b", "view"): (1, 1), ("b", "buy"): (1, 1), ("c", "view"): (1, 1)}
    assert nonzero(found["counts"]) == counts
    # Ann's row is (1, 2) / sqrt(5): a purchase weighs 2.
    assert nonzero(found["pairs"]) == {("a", "a"): 1.2, ("a", "b"): 0.4, ("b", "b"): 0.8, ("c", "c"): 1.0}


@pytest.mark.parametrize("flags", [["--runner.spill=false"], ["--runner.buckets=1"], ["--runner.buckets=300"]])
def test_where_and_in_how_many_parts_events_wait_changes_nothing(tmp_path, flags):
    expected = released(load(write_job(tmp_path / "usual", EVERYBODY)))
    assert released(load(write_job(tmp_path / "other", EVERYBODY), *flags)) == expected


def test_nothing_that_waited_on_disk_stays(tmp_path):
    released(load(write_job(tmp_path, EVERYBODY)))
    assert list((tmp_path / "store" / "operator" / "spill").iterdir()) == []


def test_bounds_bind(tmp_path):
    greedy = [view("ann", item, kind=kind) for item in "abcd" for kind in ("view", "buy") for _ in range(5)]
    counts = nonzero(released(load(write_job(tmp_path, greedy)))["counts"])
    assert list(counts.values()) == [(1, 2)] * 3


@pytest.mark.parametrize(
    ("attack", "own"),
    [
        ([view("eve", "d", "1"), view("eve", "d", "2")], {("d", "view"): (1, 2)}),
        ([view("eve", "d", "9", time="2999-01-01")], {}),
        ([view("eve", "d", "9", time="1970-01-01")], {}),
        ([view("eve", "d", "9", arrival="2026-01-01")], {}),
        ([view("eve", "nowhere", "9"), view("eve", "d", "9", time="never")], {}),
        ([view("eve", "d", "9")] * 5, {("d", "view"): (1, 1)}),
    ],
    ids=["copies event ids", "far future", "far past", "late", "malformed", "repeats"],
)
def test_one_user_moves_nobody_else(tmp_path, attack, own):
    alone = released(load(write_job(tmp_path / "without", EVERYBODY)))
    attacked = released(load(write_job(tmp_path / "with", [*attack, *EVERYBODY])))
    assert nonzero(attacked["counts"]) == {**nonzero(alone["counts"]), **own}
    others = {pair: value for pair, value in attacked["pairs"].items() if "d" not in pair}
    assert others == {pair: value for pair, value in alone["pairs"].items() if "d" not in pair}


@pytest.mark.parametrize("engine", ["columnar", "reference"])
def test_an_empty_and_a_one_user_data_set_publish_the_same_keys(tmp_path, engine):
    figures = []
    for lines in ([], [view("ann", "a")]):
        job = load(write_job(tmp_path / str(len(lines)), lines, epsilon=1.0), "--cooccurrence.engine", engine)
        figures.append(released(job))
    for name in ("counts", "pairs"):
        assert sorted(figures[0][name]) == sorted(figures[1][name])
    assert len(figures[0]["counts"]) == 8
    assert len(figures[0]["pairs"]) == 10


def test_without_a_catalogue_only_items_of_many_appear(tmp_path):
    # Threshold 26.0, noise 4.3: the common item is missed, or the rare one shown, with probability below 1e-6.
    crowd = [view(f"u{n}", "common") for n in range(200)] + [view("ann", "rare")]
    found = released(load(write_job(tmp_path, crowd, epsilon=4.0, catalogue=False)))
    assert {item for item, _ in found["counts"]} == {"common"}
    assert set(found["pairs"]) == {("common", "common")}


def test_the_opted_out_are_not_counted_and_leave_no_dead_letters(tmp_path):
    path = write_job(tmp_path, [*EVERYBODY, view("ann", "nowhere")])
    (tmp_path / "opt_out.txt").write_text("ann\n")
    found = released(load(path, "--privacy.opt_out", str(tmp_path / "opt_out.txt")))
    assert nonzero(found["counts"]) == {("a", "view"): (1, 1), ("c", "view"): (1, 1)}
    [letters] = (tmp_path / "store" / "operator" / "dead_letters").iterdir()
    assert letters.read_text() == ""


def test_malformed_rows_are_kept_with_place_and_reason(tmp_path):
    released(load(write_job(tmp_path, [*EVERYBODY, view("", "a"), view("bob", "a", time="soon")])))
    [letters] = (tmp_path / "store" / "operator" / "dead_letters").iterdir()
    found = [json.loads(line) for line in letters.read_text().splitlines()]
    assert [(letter["row"], letter["reason"]) for letter in found] == [
        (6, "privacy_id is missing"),
        (7, "event_time is not a time"),
    ]


def test_too_many_malformed_rows_stop_the_job_before_anything_is_spent(tmp_path):
    job = load(write_job(tmp_path, [view("ann", "a"), view("", "a"), view("", "a")]))
    with pytest.raises(errors.RefusedError, match=r"66\.67% of the rows are malformed"):
        release.run(job)
    assert (charges(job), published(job)) == ([], [])
    assert not (job.job.store / "releases").exists()


def test_a_crashed_release_is_finished_by_the_same_job_at_no_further_cost(tmp_path):
    job = load(write_job(tmp_path, EVERYBODY))
    with crashing("finish"):
        release.run(job)
    [charge] = charges(job)
    assert (charge["status"], published(job)) == ("reserved", [])
    release.run(job)
    [again] = charges(job)
    assert again == {**charge, "status": "published", "fence": 2, "attempt": again["attempt"]}
    assert store.Store(job.job.store).release_ids() == {charge["release_id"]}
    assert store.Store(job.job.store).attempts() == {again["attempt"]}


def test_a_crash_between_ledger_and_store_is_settled_by_the_next_run(tmp_path):
    """The ledger has named the attempt: that one is shown, and nothing is drawn again."""
    job = load(write_job(tmp_path, EVERYBODY))
    with crashing("show"):
        release.run(job)
    assert ([charge["status"] for charge in charges(job)], published(job)) == (["published"], [])
    release.run(job)
    [charge] = charges(job)
    assert store.Store(job.job.store).release_ids() == {charge["release_id"]}
    assert charge["fence"] == 1


def test_a_run_that_was_overtaken_publishes_nothing(tmp_path, monkeypatch):
    """Another run is granted the release while this one draws: the fence has moved on."""
    job = load(write_job(tmp_path, EVERYBODY))
    finish = store.Store.finish

    def overtaken(kept, attempt, manifest):
        [charge] = charges(job)
        with contextlib.closing(sqlite3.connect(contract.ledger_url(job).removeprefix("sqlite:///"))) as connection:
            connection.execute("update releases set fence = ?, attempt = 'other'", (charge["fence"] + 1,))
            connection.commit()
        finish(kept, attempt, manifest)

    monkeypatch.setattr(store.Store, "finish", overtaken)
    with pytest.raises(Exception, match="another run has taken this release over"):
        release.run(job)
    assert store.Store(job.job.store).attempts() == set()


def test_a_private_selection_that_nothing_passes_still_becomes_a_database(tmp_path):
    path = write_job(tmp_path, EVERYBODY, epsilon=0.1, catalogue=False)
    load(path)
    assert cli.main(["run", str(path)]) == 0
    with database.connect(tmp_path / "store") as connection:
        assert connection.sql("select count(*) from items").fetchall() == [(0,)]
        assert connection.sql("select total_epsilon from privacy_spent()").fetchall() == [(0.1,)]


def test_a_damaged_file_is_named_and_costs_nothing(tmp_path):
    write_job(tmp_path, [])
    n, file = 10_000, tmp_path / "events.parquet"
    times = pa.array([dt.datetime(2025, 1, 10, tzinfo=dt.UTC)] * n)
    values = {"privacy_id": [f"u{i}" for i in range(n)], "item_id": ["a"] * n, "event_type": ["view"] * n, "event_time": times}
    nothing = {name: pa.nulls(n, pa.string()) for name in ("event_id", "value", "arrival_time")}
    pq.write_table(pa.table({**values, **nothing}), file)
    content = bytearray(file.read_bytes())
    content[1000:3000] = bytes(2000)
    file.write_bytes(content)
    job = load(tmp_path / "job.toml", "--source.kind=parquet", "--source.paths", f'["{file}"]')
    with pytest.raises(errors.BadInputError, match=r"events\.parquet can't be read to its end \(\w+\): is it damaged\?$"):
        release.run(job)
    assert charges(job) == []


def test_a_matrix_that_memory_cannot_hold_is_refused_before_anything_is_spent(tmp_path, caplog):
    path = write_job(tmp_path, EVERYBODY)
    with pytest.raises(config.JobFileError, match=r"a matrix of 4 items needs 1\.1 GB .* at most 0"):
        release.run(load(path, "--runner.memory_gb", "1"))
    assert charges(load(path)) == []
    with caplog.at_level("INFO"):
        release.run(load(path, "--runner.memory_gb", "1.2"))
    assert "up to 4 items in the matrix: 1.1 GB of memory beside the events, of 1.2 GB" in caplog.messages


@pytest.mark.parametrize("memory_gb", [2, 8, 24])
def test_the_advice_is_the_largest_matrix_that_fits(memory_gb):
    most = cooccurrence.most_items(memory_gb * 10**9)
    assert cooccurrence.memory_needed(most) <= memory_gb * 10**9
    assert most == cooccurrence.MAX_ITEMS or cooccurrence.memory_needed(most + 1) > memory_gb * 10**9


def test_the_noise_of_the_blocks_may_be_pipelinedps(tmp_path):
    found = released(load(write_job(tmp_path, EVERYBODY), "--cooccurrence.noise", "pipelinedp"))
    assert nonzero(found["pairs"]) == {("a", "a"): 1.2, ("a", "b"): 0.4, ("b", "b"): 0.8, ("c", "c"): 1.0}


def test_the_same_release_is_read_back_and_another_must_be_asked_for_and_paid(tmp_path):
    job = load(write_job(tmp_path, EVERYBODY))
    assert release.run(job) == release.run(job)
    with pytest.raises(ledger.BudgetRefusedError, match=r"has 0\.0% left, and this release asks for 100\.0% of it"):
        release.run(job, allow_another=True)
    contract.grant(job, 3 * EXACT, None, "a test")
    release.run(job, allow_another=True)
    assert [charge["status"] for charge in charges(job)] == ["published", "published"]
    assert len(published(job)) == 2


@pytest.mark.parametrize("change", ["events", "query"])
def test_changed_data_or_another_query_is_a_new_release_and_pays(tmp_path, change):
    path = write_job(tmp_path, EVERYBODY, epsilon=0.5)
    load(path, "--privacy.total_epsilon=1")
    release.run(load(path))
    flags = ["--counts.max_partitions_contributed=2"] if change == "query" else []
    if change == "events":
        write_job(tmp_path, EVERYBODY[1:], epsilon=0.5)
    release.run(load(path, *flags))
    assert len(charges(load(path))) == 2


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--privacy.total_epsilon=3"], "asks for"),
        (["--job.name=other", "--privacy.total_epsilon=1.1"], "asks for"),
        (["--privacy.period=month"], "privacy.period = 'month', not 'lifetime'"),
        (["--privacy.composition=zcdp"], "privacy.composition = 'zcdp', not 'gaussian'"),
        (["--job.data_set=other"], "'other' has no contract"),
        (["--source.paths", '["{directory}/more/*.csv"]'], "stands for another source"),
        (["--privacy.key_file", "{directory}/new.key"], "was begun with another pseudonym key"),
    ],
    ids=["flag", "job name", "period", "composition", "data set", "moved source", "new key"],
)
def test_no_job_raises_its_own_budget(tmp_path, flags, message):
    path = write_job(tmp_path, EVERYBODY, epsilon=1.0)
    load(path)
    pseudonym.write_key(tmp_path / "new.key")
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "events.csv").write_text((tmp_path / "events.csv").read_text())
    job, _ = config.load(path, [flag.format(directory=tmp_path) for flag in flags])
    with pytest.raises(ledger.BudgetRefusedError, match=message):
        release.run(job)
    assert charges(load(path)) == []


def test_a_crashed_second_release_is_gone_on_with_and_not_paid_again(tmp_path):
    path = write_job(tmp_path, EVERYBODY, epsilon=0.5)
    load(path, "--privacy.total_epsilon=2")
    job = load(path)
    release.run(job)
    with crashing("finish"):
        release.run(job, allow_another=True)
    release.run(job, allow_another=True)
    assert [charge["status"] for charge in charges(job)] == ["published", "published"]


def test_what_is_published_is_what_was_run(tmp_path):
    """Run A, then B, then A again: the database is A's."""
    path = write_job(tmp_path, EVERYBODY, epsilon=0.5)
    load(path, "--privacy.total_epsilon=2")
    for flags in ([], ["--counts.max_partitions_contributed=2"], []):
        assert cli.main(["run", str(path), *flags]) == 0
    with database.connect(tmp_path / "store") as connection:
        [(release_ids,)] = connection.sql("select release_ids from model_versions").fetchall()
    assert release_ids == [charges(load(path))[0]["release_id"]]


def test_what_dead_rows_had_goes_no_further(tmp_path, caplog):
    """Values of dead rows are in the same dictionaries as those of events."""
    write_job(tmp_path, [])
    times = pa.array([dt.datetime(2025, 1, 10, tzinfo=dt.UTC)] * 4)
    columns = {
        "privacy_id": pa.array(["ann", "bob", "cat", ""], pa.large_string()),
        "item_id": pa.array(["a", "a", "", "a"], pa.large_string()),
        "event_type": pa.array(["view", "secret text", "view", "view"], pa.large_string()),
        "event_time": times,
        **{name: pa.nulls(4, pa.string()) for name in ("event_id", "value", "arrival_time")},
    }
    pq.write_table(pa.table(columns), tmp_path / "events.parquet")
    flags = ["--source.kind=parquet", "--source.paths", f'["{tmp_path}/events.parquet"]', "--source.max_malformed_share=1"]
    found = released(load(tmp_path / "job.toml", *flags))
    assert nonzero(found["counts"]) == {("a", "view"): (1, 1)}
    assert "secret text" not in caplog.text


@pytest.mark.parametrize("store_is", ["deleted", "moved"])
def test_neither_a_deleted_nor_another_store_brings_budget_back(tmp_path, store_is):
    path = write_job(tmp_path, EVERYBODY, epsilon=1.0)
    release.run(load(path))
    flags = ["--job.store", str(tmp_path / "elsewhere")] if store_is == "moved" else []
    if store_is == "deleted":
        shutil.rmtree(tmp_path / "store")
    with pytest.raises(errors.AlreadyReleasedError, match="put that store back"):
        release.run(load(path, *flags))
    with pytest.raises(ledger.BudgetRefusedError, match=r"has 0\.0% left"):
        release.run(load(path, *flags), allow_another=True)


def test_a_store_whose_ledger_is_lost_is_refused(tmp_path):
    path = write_job(tmp_path, EVERYBODY)
    release.run(load(path))
    with pytest.raises(errors.BadInputError, match=r"1 release\(s\) there are not in the ledger"):
        release.run(load(path, "--privacy.ledger", f"sqlite:///{tmp_path}/new.sqlite"))


@pytest.mark.parametrize("catalogue", [True, False], ids=["public partitions", "private partitions"])
def test_the_ledger_agrees_with_an_independent_accountant(tmp_path, catalogue):
    job = load(write_job(tmp_path, EVERYBODY, epsilon=1.0, catalogue=catalogue))
    release.run(job)
    charge = charges(job)[0]["charge"]
    composed = pld.PLDAccountant(dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE)
    for mechanism in charge["mechanisms"]:
        assert mechanism["noise_sd"] == mechanism["noise_multiplier"] * mechanism["l2_sensitivity"]
        composed.compose(dp_accounting.GaussianDpEvent(mechanism["noise_multiplier"]))
    left = charge["total_delta"] - sum(mechanism["delta"] for mechanism in charge["mechanisms"])
    # The PLD rounds pessimistically, by less than a percent.
    assert charge["total_epsilon"] * 0.999 < composed.get_epsilon(left) < charge["total_epsilon"] * 1.01


@pytest.fixture(scope="module")
def noise_alone(tmp_path_factory) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """A job on no events and 400 public items: its charged standard deviations, and all that it released."""
    directory = tmp_path_factory.mktemp("noise")
    path = write_job(directory, [], epsilon=1.0)
    (directory / "items.csv").write_text("item_id,title,genre\n" + "".join(f"i{n},,x\n" for n in range(400)))
    job = load(path, "--cooccurrence.max_items", "400")
    release.run(job)
    kept = store.Store(job.job.store)
    charge, [manifest] = charges(job)[0]["charge"], published(job)
    counts = kept.read_table(manifest, "item_counts", tables.ITEM_COUNTS)
    pairs = kept.read_table(manifest, "item_pairs", tables.ITEM_PAIRS)
    is_diagonal = pairs["row"].to_numpy() == pairs["col"].to_numpy()
    value = pairs["value"].to_numpy()
    drawn = {
        budget.SELECTION: kept.read_table(manifest, "items", tables.ITEMS)["score"].to_numpy(),
        budget.COUNTS_USERS: counts["users"].to_numpy(),
        budget.COUNTS_EVENTS: counts["events"].to_numpy(),
        budget.COOCCURRENCE: np.concatenate([value[is_diagonal], value[~is_diagonal] * math.sqrt(2)]),
    }
    return {mechanism["name"]: mechanism["noise_sd"] for mechanism in charge["mechanisms"]}, drawn


MECHANISMS = [budget.SELECTION, budget.COUNTS_USERS, budget.COUNTS_EVENTS, budget.COOCCURRENCE]


@pytest.mark.parametrize("name", MECHANISMS)
@pytest.mark.parametrize(("scale", "accepted"), [(1.0, True), (0.7, False), (1.4, False)])
def test_the_sigma_that_is_charged_is_the_sigma_that_is_drawn(noise_alone, name, scale, accepted):
    charged, drawn = noise_alone
    sample = drawn[name] * scale / charged[name]
    # The sum of squares is chi-squared: flake probability 1e-6 at the charged scale; with 400 draws or more, the other two
    # are missed with probability below 1e-6.
    squares, n = float(np.sum(sample**2)), len(sample)
    assert (stats.chi2.ppf(5e-7, n) < squares < stats.chi2.isf(5e-7, n)) == accepted


@pytest.mark.parametrize("name", MECHANISMS)
def test_what_is_drawn_is_gaussian_and_independent(noise_alone, name):
    charged, drawn = noise_alone
    sample = drawn[name] / charged[name]
    assert stats.kstest(sample, "norm").pvalue > 1e-6
    correlation = np.mean(sample[:-1] * sample[1:]) if name != budget.SELECTION else 0.0  # scores are sorted
    assert abs(correlation) < 5.3 / math.sqrt(len(sample))  # flake probability 1e-7


def test_no_two_tables_share_noise(noise_alone):
    """Diagonal and scores, users and events: a key used twice would give the same draws."""
    _, drawn = noise_alone
    diagonal, off = drawn[budget.COOCCURRENCE][:400], drawn[budget.COOCCURRENCE][400:800]
    for one, other in ((diagonal, off), (drawn[budget.COUNTS_USERS][:400], diagonal)):
        assert abs(np.corrcoef(one, other)[0, 1]) < 5.3 / math.sqrt(400)  # flake probability 1e-7


def test_nothing_computed_exactly_from_events_is_published(tmp_path):
    """The manifest is the same whatever the data, but for names drawn at random."""
    manifests = []
    for lines in ([], EVERYBODY):
        job = load(write_job(tmp_path / str(len(lines)), lines, epsilon=1.0))
        release.run(job)
        [manifest] = published(job)
        manifests.append({k: v for k, v in manifest.items() if k not in ("release_id", "attempt", "parts")})
        assert sorted({part.split("/")[0] for part in manifest["parts"]}) == ["item_counts", "item_pairs", "items"]
        assert len(manifest["parts"]) == 3
    assert manifests[0] == manifests[1]
