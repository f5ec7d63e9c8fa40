"""`sottovoce tune`: searches on cheap objectives, simulations against the job's own release, and that it reads no event."""

import pathlib
import re
import shutil

import numpy as np
import pyarrow as pa
import pytest
import scipy.sparse as sp

from data import tables
from pipelines import cli, config, contract, evaluate, fitted, plan, simulate, source, tune
from tests.pipelines import example
from tests.pipelines.test_page import read
from transforms.privacy import budget, noise
from transforms.release import selection


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> pathlib.Path:
    """The job file of a small world, released, trained on and published."""
    directory = tmp_path_factory.mktemp("tune") / "world"
    path = example.synthetic_world(directory, users=1500, items=100, seed=3)
    flags = ["--privacy.total_epsilon", "4", "--privacy.ledger", f"sqlite:///{directory}-ledger.sqlite"]
    assert cli.main(["budget", "init", str(path), *flags]) == 0
    assert cli.main(["run", str(path), *flags]) == 0
    return path


# Searches


@pytest.mark.parametrize("goal", [0.3, 1.0, 2.7, 7.9])
def test_finds_the_least_epsilon_within_its_tolerance(goal):
    found = tune.least(lambda epsilon: epsilon >= goal, 0.25, 8)
    assert found is not None
    assert goal <= found <= goal * (1 + tune.TOLERANCE)


def test_a_smaller_goal_needs_no_more_epsilon():
    found = [tune.least(lambda epsilon, goal=goal: epsilon**0.5 >= goal, 0.25, 8) for goal in (0.1, 0.5, 0.9, 1.7, 2.8)]
    assert found[0] == 0.25
    assert found == sorted(found)
    assert tune.least(lambda _: False, 0.25, 8) is None


def test_the_search_finds_a_planted_optimum_and_asks_once_for_each_setting():
    asked = []

    def objective(setting):
        asked.append(tuple(setting.values()))
        return -abs(setting["a"] - 3) - abs(setting["b"] - 20) - abs(setting["a"] * 10 - setting["b"]) / 40

    space = {"a": range(6), "b": range(0, 60, 5)}
    assert tune.search({"a": 0, "b": 50}, space, objective) == {"a": 3, "b": 20}
    assert len(asked) == len(set(asked))


def test_the_search_stays_where_nothing_is_better():
    start = {"a": "auto"}
    assert tune.search(start, {"a": [1, 2]}, lambda _: 0.5) == start


# Simulated releases


@pytest.mark.parametrize("catalogue", [True, False], ids=["with a catalogue", "without"])
def test_a_simulated_release_without_noise_is_the_jobs_own(tmp_path, monkeypatch, catalogue):
    lines = [
        example.view(f"user{user}", item, f"{user}{item}", kind=kind)
        for user in range(60)
        for item, kind in (("a", "view"), ("bcd"[user % 3], "buy"))
    ]
    monkeypatch.setattr(noise, "draw", lambda drawn_by, size, *_: np.zeros(size, np.int64))
    monkeypatch.setattr(noise, "grid_gaussian", lambda size, *_: np.zeros(size, np.int64))
    job = example.load(example.write_job(tmp_path, lines, catalogue=catalogue), "--evaluation.data", "public")
    public = source.public_items(job)
    ids, rows = evaluate.weights(job, public)
    planned = plan.plan(job, public)
    theirs = evaluate.release(planned, evaluate.contributions(job, evaluate.read(job, public)))
    items = simulate._items(planned, rows, ids, 0)
    assert items.equals(theirs.items)
    kept = [ids.to_pylist().index(item) for item in simulate.cooccurrence.kept_items(items).to_pylist()]
    order = [("row", "ascending"), ("col", "ascending")]
    assert simulate._pairs(rows[:, kept], 1.0, 0).sort_by(order).equals(theirs.pairs.combine_chunks().sort_by(order))


def test_noise_of_simulated_releases_is_the_plans(world):
    job = config.load(world)[0]
    ids = source.public_items(job)
    nobody = sp.csr_matrix((10, len(ids)))
    planned = plan.plan(job, ids)
    scores = np.concatenate([simulate._items(planned, nobody, ids, seed)["score"].to_numpy() for seed in range(40)])
    expected = planned.mechanisms[budget.SELECTION].noise_sd
    # 4,000 draws: the standard deviation of their standard deviation is 1.1 %; 6 of it err once in 10^9.
    assert scores.std() == pytest.approx(expected, rel=0.07)
    assert scores.std() != pytest.approx(expected * 0.7, rel=0.07)
    cells = simulate._pairs(sp.csr_matrix((10, 100)), 5.0, 0)
    off = cells.filter(pa.compute.not_equal(cells["row"], cells["col"]))["value"].to_numpy()
    assert off.std() == pytest.approx(5 / 2**0.5, rel=0.07)


def test_fewer_users_with_as_little_noise_keep_as_many_items():
    scores = 4000 / (1 + np.arange(500.0))
    whole = selection.items_to_keep(scores, 3.0, 10_000, 5000)
    assert selection.items_to_keep(scores / 5, 3.0 / 5, 2_000, 5000) == whole


def test_bounded_rows_have_at_most_so_many_items_of_the_same_user():
    rows = sp.csr_matrix(np.random.default_rng(0).random((50, 30)) < 0.5)
    bounded = simulate._bounded(rows, 5, 0)
    assert (np.diff(bounded.indptr) == np.minimum(5, np.diff(rows.indptr))).all()
    assert (bounded > rows).nnz == 0
    assert simulate._bounded(rows, 30, 0) is rows


def test_count_error_is_what_a_simulation_of_the_counts_finds(world):
    job = config.load(world)[0]
    ids, rows = evaluate.weights(job, source.public_items(job))
    trials = simulate.Trials(ids, source.load_catalogue(job), lambda seed: simulate.hold_out(rows, 100, 2.0, seed))
    tight = config.changed(job, {"counts.max_partitions_contributed": 10})
    train = trials.people(0).train
    rng = np.random.default_rng(0)
    noise_sd = plan.plan(tight, ids).mechanisms[budget.COUNTS_USERS].noise_sd
    users = 2 * np.bincount(train.indices, minlength=len(ids))
    errors = np.array(
        [
            2 * np.bincount(simulate._bounded(train, 10, seed).indices, minlength=len(ids))
            + rng.normal(0, noise_sd, len(ids))
            - users
            for seed in range(300)
        ]
    )
    best = np.argsort(-users, kind="stable")[: simulate.COUNTED]
    best = best[users[best] > 0]
    found = np.sqrt((errors[:, best] ** 2).mean(0)) / users[best]
    assert trials.count_error(tight, 0) == pytest.approx(found.mean(), rel=0.05)


def test_held_out_users_are_in_no_training_and_lose_a_fifth():
    rows = sp.csr_matrix(np.ones((40, 25), np.float32))
    people = simulate.hold_out(rows, 10, 1.0, 0)
    assert (people.train.shape[0], people.history.shape[0]) == (30, 10)
    assert (np.diff(people.hidden.indptr) == 5).all()
    assert (people.history + people.hidden != rows[:10]).nnz == 0


# The command


FLAGS = ["--model.kind=hybrid", "--model.signal=low-rank", "--users", "800", "--epsilons", "0.5", "4"]


@pytest.fixture
def quick(monkeypatch):
    """Fewer draws and settings: the same steps."""
    monkeypatch.setattr(tune, "SEEDS", 2)
    monkeypatch.setattr(tune, "FRESH_SEEDS", 2)
    monkeypatch.setattr(tune, "_SELECTION_PARTS", (0.09, 0.2))
    monkeypatch.setattr(tune, "_SELECTION_BOUNDS", (500,))
    monkeypatch.setattr(tune, "_KEPT_FACTORS", (0.7,))
    monkeypatch.setattr(tune.world, "ROUNDS", 4)


def test_on_private_data_reads_what_is_published_and_no_event(world, tmp_path, capsys, quick, monkeypatch):
    """Without the events, the key, the ledger and all of the store but the database it says the same."""
    place = tmp_path / "elsewhere"
    (place / "store").mkdir(parents=True)
    shutil.copytree(world.parent / "store" / "versions", place / "store" / "versions")
    (place / "store" / "current.duckdb").symlink_to("versions/1.duckdb")
    shutil.copy(world.parent / "items.parquet", place)
    (place / "job.toml").write_text(
        world.read_text().replace(str(world.parent), str(place)).replace('"synthetic"', '"private"')
    )
    for name in ("find", "public_items"):
        monkeypatch.setattr(source, name, lambda *_: pytest.fail("must not be read"))
    monkeypatch.setattr(contract, "open_ledger", lambda *_: pytest.fail("must not be asked"))
    output = tmp_path / "private.html"
    assert cli.main(["tune", str(place / "job.toml"), *FLAGS, "--target-recall", "0.05", "--output", str(output)]) == 0
    shown = capsys.readouterr().out
    assert "Users are made up, from published figures alone" in shown
    assert "Nothing was charged." in shown
    assert re.search(r"^epsilon 0\.5 or less reaches Recall@20 0\.05: 0\.\d+ \[.*\(fitted world\)$", shown, flags=re.MULTILINE)
    page = read(output.read_bytes())
    assert "Epsilon 0.5 or less reaches" in "".join(page.text)
    assert output.with_suffix(".png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    # Once more: the same figures, page and picture.
    again = tmp_path / "again.html"
    assert cli.main(["tune", str(place / "job.toml"), *FLAGS, "--target-recall", "0.05", "--output", str(again)]) == 0
    assert capsys.readouterr().out == shown
    assert again.read_bytes() == output.read_bytes()
    assert again.with_suffix(".png").read_bytes() == output.with_suffix(".png").read_bytes()


def test_on_public_data_takes_the_jobs_own_users(world, tmp_path, capsys, quick):
    goal = ["--target-count-error", "0.3", "--output", str(tmp_path / "own.html")]
    assert cli.main(["tune", str(world), *FLAGS, *goal]) == 0
    shown = capsys.readouterr().out
    assert "Users are the job's own (synthetic data): 800 simulated for 1200, 100 items" in shown
    assert re.search(r"^(epsilon .* reaches|no epsilon up to 4 reaches) a count error of 30%", shown, flags=re.MULTILINE)
    recalls = [float(each) for each in re.findall(r"^[\d.]+ +(0\.\d{4}) \[", shown, flags=re.MULTILINE)]
    assert len(recalls) == 2
    assert recalls == sorted(recalls)
    for name in ("Gaussian (ours)", "discrete Gaussian", "Laplace", "truncated geometric", "weighted Gaussian (ours)"):
        assert name in shown


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (["--world", "events", "--evaluation.data", "private"], 2, r'evaluation\.data = "private"'),
        (["--world", "fitted", "--job.store", "{tmp}/none"], 6, "nothing is published in this store yet"),
        (["--output", "{tmp}/there.html"], 2, "there.html: is there already"),
        (["--output", "{tmp}/picture.html"], 2, "picture.png: is there already"),
        (["--output", "{tmp}/new.png"], 2, "names the page; the PNG comes beside it"),
    ],
    ids=["private events", "nothing published", "the page is there", "the picture is there", "the page is a picture"],
)
def test_refuses_before_it_computes(world, tmp_path, capsys, monkeypatch, flags, code, message):
    for name in ("there.html", "picture.png"):
        (tmp_path / name).touch()
    monkeypatch.setattr(simulate.Trials, "recalls", lambda *_: pytest.fail("must not be computed"))
    monkeypatch.chdir(tmp_path)
    assert cli.main(["tune", str(world), *(flag.replace("{tmp}", str(tmp_path)) for flag in flags)]) == code
    assert re.search(message, capsys.readouterr().err)


@pytest.mark.parametrize(
    "flags",
    [
        ["--epsilons", "0"],
        ["--epsilons", "inf"],
        ["--target-recall", "1"],
        ["--target-count-error", "-1"],
        ["--target-recall", "0.3", "--target-count-error", "0.1"],
        ["--users", "9"],
        ["--world", "mine"],
    ],
    ids=" ".join,
)
def test_refuses_flags_that_mean_nothing(flags):
    with pytest.raises(SystemExit, match="2"):
        cli.main(["tune", "job.toml", *flags])


# Published figures


def test_reads_the_figures_that_were_released(world):
    job = config.load(world)[0]
    ids, figures = fitted.read(job.job.store, source.load_catalogue(job), job.source.event_types, 1500)
    exact, rows = evaluate.weights(job, source.public_items(job))
    assert ids.equals(exact)
    scores = selection.exact_scores(rows) * 2.0**-selection.GRID_BITS
    planned = plan.plan(config.changed(job, {"privacy.total_epsilon": 4.0}), ids)
    assert figures.score_sd == pytest.approx(planned.mechanisms[budget.SELECTION].noise_sd)
    assert figures.noise_sd == pytest.approx(planned.mechanisms[budget.COOCCURRENCE].noise_sd / 2**0.5)
    # Up to their noise: 100 draws, none beyond 6 standard deviations (once in 10^6).
    assert np.abs(figures.scores - scores).max() < 6 * figures.score_sd
    assert np.abs(figures.matrix - figures.matrix.T).max() == 0
    assert np.trace(figures.matrix) == pytest.approx(1500, abs=6 * figures.noise_sd * (2 * len(figures.known)) ** 0.5)
    # Purchases weigh twice as much as views, and three in ten of a user's items are bought.
    assert [weight for weight, _ in figures.weights] == [2.0, 1.0]
    assert [share for _, share in figures.weights] == pytest.approx([0.3, 0.7], abs=0.15)


def test_without_a_catalogue_the_world_has_the_items_that_were_shown_and_some_that_were_not(world, quick):
    job = config.load(world)[0].model_copy(update={"catalogue": None})
    trials, facts = tune._of_published(job, 20, 800)
    assert facts["items"] >= 100
    assert trials.ids.to_pylist()[100:] == [f"(hidden {number})" for number in range(facts["items"] - 100)]
    recalls = [trials.recalls(config.changed(job, {"privacy.total_epsilon": epsilon}), [0])[0] for epsilon in (0.01, 1e4)]
    # At the least epsilon no item passes the threshold, and nothing is recommended.
    assert recalls[0] == 0 < recalls[1]


def test_without_a_catalogue_the_hidden_items_continue_those_shown():
    shown = 5000 / (1 + np.arange(100.0))
    hidden = fitted._continued(shown)
    assert len(hidden) <= fitted.HIDDEN_TIMES * len(shown)
    assert (np.diff(hidden) <= 0).all()
    assert hidden[0] == pytest.approx(shown[-1], rel=0.05)
    assert hidden[-1] >= 1
    assert len(fitted._continued(np.array([9.0, 8.0]))) == 0


def test_a_store_without_co_occurrences_says_so(tmp_path, capsys):
    from data import database
    from tests.data.test_database import make_contents

    empty = {name: getattr(tables, name.upper()).empty_table() for name in ("embeddings", "model_versions", "recommendations")}
    database.publish(tmp_path / "store", make_contents(**empty), 5)
    path = example.write_job(tmp_path, [example.view("ann", "a")])
    assert cli.main(["tune", str(path), "--output", str(tmp_path / "x.html")]) == 6
    assert "no co-occurrences are published there yet" in capsys.readouterr().err
