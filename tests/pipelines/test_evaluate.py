"""`sottovoce evaluate`: for public and synthetic events alone, on models that haven't seen what they are asked for."""

import json
import math
import pathlib
import re

import numpy as np
import pyarrow as pa
import pytest

from data import store, tables
from pipelines import cli, config, evaluate, plan, release, source
from tests.pipelines import example
from tests.pipelines.example import view
from transforms.privacy import budget, noise

MODELS = ["popularity", "epsilon 1", "without noise"]


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> pathlib.Path:
    """The job file of a synthetic world, nothing of which was released."""
    return example.synthetic_world(tmp_path_factory.mktemp("world") / "world", users=1200, items=100)


def report(capsys, *arguments: str) -> dict:
    assert cli.main(["evaluate", *arguments, "--format", "json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_measures_models_on_users_that_they_have_not_seen(capsys, world):
    found = report(capsys, str(world), "--k", "10")
    assert (found["data"], found["split"], found["k"], found["items"]) == ("synthetic", "users", 10, 100)
    assert found["users_trained_on"] + found["users_asked"] <= 1200
    assert abs(found["users_trained_on"] - 960) < 6 * math.sqrt(1200 * 0.2 * 0.8)
    assert set(found["metrics"]) == {"recall", "ndcg", "mrr", "coverage", "novelty", "popularity_share", "intra_list_diversity"}
    recall = found["metrics"]["recall"]
    assert list(recall) == MODELS
    assert all(0 <= each["low"] <= each["mean"] <= each["high"] <= 1 for each in recall.values())
    # By a wide margin, whatever the noise: the world has tastes.
    assert recall["without noise"]["low"] > recall["popularity"]["high"]
    assert sum(part["items"] for part in found["slices"].values()) == 100
    assert found["diversity_of"] == "catalogue features"
    assert found["audit"] == {}


def test_asks_the_same_users_again_whatever_the_noise(capsys, world):
    first, second = (report(capsys, str(world)) for _ in range(2))
    assert first["metrics"]["recall"]["without noise"] == pytest.approx(second["metrics"]["recall"]["without noise"], abs=5e-3)
    same = ("users_trained_on", "users_asked", "items_hidden")
    assert [first[name] for name in same] == [second[name] for name in same]
    other = report(capsys, str(world), "--evaluation.seed", "1")
    assert [first[name] for name in same] != [other[name] for name in same]


def test_measures_what_comes_after_a_time(capsys, world):
    found = report(capsys, str(world), "--split", "time", "--evaluation.test_start", "2025-07-01")
    assert (found["split"], found["test_start"]) == ("time", "2025-07-01T00:00:00+00:00")
    # Who came in the second half is in no training, and items that came then are cold.
    assert 450 < found["users_trained_on"] < 750
    assert found["slices"]["cold"]["items"] > 5
    later = report(capsys, str(world), "--split", "time")
    assert later["test_start"] > found["test_start"]


def test_shows_a_table(capsys, world):
    assert cli.main(["evaluate", str(world), "--k", "5"]) == 0
    shown = capsys.readouterr().out
    head, note, _, models, *rows = shown.splitlines()
    assert re.fullmatch(r"synthetic-7 \(synthetic data\), users held out: 0.2; \d+ users trained on, \d+ asked, .*", head)
    assert "exact, not private" in note
    assert re.split(r"\s{2,}", models.strip()) == MODELS
    names = ["Recall@5", "NDCG@5", "MRR@5", "coverage", "novelty, bits", "popularity share (ARP)", "intra-list diversity"]
    assert [row.split("  ")[0] for row in rows[:7]] == names
    assert all(re.search(r"  0\.\d{4} \[0\.\d{4}, 0\.\d{4}\]", row) for row in rows[:3])
    assert [row.split()[0] for row in rows[8:]] == ["Recall@5", "head", "torso", "tail", "cold"]


DIVERSE = ["--diversity.method", "mmr", "--diversity.category_feature", "genre", "--diversity.trade_off"]


def test_shows_what_re_ranking_costs_and_does(capsys, world):
    found = report(capsys, str(world), *DIVERSE, "0.6", "--diversity.max_per_category", "4")
    assert list(found["metrics"]["ndcg"]) == [*MODELS, "re-ranked"]
    diversity, tail = found["metrics"]["intra_list_diversity"], found["audit"]["tail_share"]
    assert diversity["re-ranked"]["low"] > diversity["epsilon 1"]["high"]
    assert list(tail) == ["epsilon 1", "re-ranked"]
    assert found["audit"]["diversity"]["re-ranked"] > found["audit"]["diversity"]["epsilon 1"]
    shares = found["audit"]["category_shares"]
    for model in tail:
        assert sum(share[model] for share in shares.values()) == pytest.approx(1)
    # 4 of a list of 20 at most; lists that are shorter for it have larger shares.
    assert max(share["re-ranked"] for share in shares.values()) < max(share["epsilon 1"] for share in shares.values())
    assert cli.main(["evaluate", str(world), *DIVERSE, "0.2"]) == 0
    shown = capsys.readouterr().out.splitlines()
    start = shown.index(next(line for line in shown if line.startswith("audit")))
    assert re.split(r"\s{2,}", shown[start]) == ["audit", "epsilon 1", "re-ranked"]
    assert [line.split("  ")[0] for line in shown[start + 1 : start + 4]] == [
        "Gini of exposure", "share of the long tail", "diversity, as re-ranked by",
    ]  # fmt: skip
    assert all(re.match(r"share of [a-z ]+ {2,}0\.\d{4}  ", line) for line in shown[start + 4 :])


def test_diversity_is_of_the_features_that_are_named(capsys, world):
    found = report(capsys, str(world), *DIVERSE, "0.6", "--diversity.features", '["genre"]')
    assert found["diversity_of"] == "catalogue features: genre"
    gains = {name: value["mean"] for name, value in found["metrics"]["intra_list_diversity"].items()}
    assert gains["re-ranked"] > 1.2 * gains["epsilon 1"]


def test_a_trade_off_of_0_changes_nothing(capsys, world):
    found = report(capsys, str(world), *DIVERSE, "0")
    for values in found["metrics"].values():
        assert values["re-ranked"] == values["epsilon 1"]


def test_keeps_and_charges_nothing(capsys, world):
    report(capsys, str(world))
    example.assert_nothing_is_kept(world)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--evaluation.data", "private"], 'evaluation.data = "private" .*budget_share = 0: .* charged .* data = "public"'),
        (["--models", "2"], '--models 2: is for private data; on data = "synthetic" a model is trained for it'),
        (["--window.size", "1w"], "evaluate: window.size = '1w': .* say --window.size all"),
        (["--source.kind=kafka", "--source.paths=[]", "--source.topic=e", "--kafka.bootstrap=b:1"], "it reads files alone"),
        (["--evaluation.data", "open"], r"evaluation\.data = 'open': .*'private', 'public' or 'synthetic'"),
        (["--evaluation.held_out_share", "1"], r"evaluation\.held_out_share = 1: .* less than 1"),
    ],
    ids=["private", "models of the store", "windows", "a topic", "unknown data", "everybody held out"],
)
def test_refuses_with_2_and_reads_nothing(capsys, world, monkeypatch, flags, message):
    monkeypatch.setattr(source, "find", lambda *_: pytest.fail("must not be read"))
    if flags[0].startswith("--source"):
        (world.parent / "topic.toml").write_text(re.sub("columns = .*", "", world.read_text()).replace("view = 1.0, ", ""))
        world = world.parent / "topic.toml"
    assert cli.main(["evaluate", str(world), *flags]) == 2
    (world.parent / "topic.toml").unlink(missing_ok=True)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert re.search(message, shown.err)


def test_a_job_is_private_unless_it_says_otherwise(capsys, tmp_path):
    path = example.write_job(tmp_path, [view("ann", "a")])
    assert cli.main(["evaluate", str(path)]) == 2
    assert 'evaluation.data = "private" (the default)' in capsys.readouterr().err


@pytest.mark.parametrize(
    ("lines", "code", "message"),
    [
        ([view("ann", "a"), view("bob", "b")], 3, r"users to train on and 0 to ask, but there must be some of both"),
        ([view("ann", "a", time="2024-01-01")], 3, "the source has no event that counts"),
        ([view("", "a"), view("", "b"), view("ann", "a")], 5, r"66\.7% of the rows are malformed"),
    ],
    ids=["nobody to ask", "no event", "malformed rows"],
)
def test_says_why_there_is_nothing_to_measure(capsys, tmp_path, lines, code, message):
    path = example.write_job(tmp_path, lines)
    assert cli.main(["evaluate", str(path), "--evaluation.data", "public"]) == code
    assert re.search(message, capsys.readouterr().err)


PEOPLE = [
    view(f"user{user}", item, f"{user}{item}", kind=kind)
    for user in range(60)
    for item, kind in (("a", "view"), ("a", "buy"), ("bcd"[user % 3], "view"), ("bd"[user % 2], "buy"))
]


@pytest.mark.parametrize("catalogue", [True, False], ids=["with a catalogue", "without"])
def test_what_it_trains_on_is_what_the_job_releases(tmp_path, monkeypatch, catalogue):
    """Before noise: the job's own release, and the evaluation's of all users, integer by integer."""
    monkeypatch.setattr(noise, "draw", lambda drawn_by, size, noise_sd, grid_bits: np.zeros(size, np.int64))
    job = example.load(example.write_job(tmp_path, [*PEOPLE, PEOPLE[0]], catalogue=catalogue))
    manifest = store.Store(job.job.store).manifest(release.run(job))
    public = source.public_items(job)
    batches = evaluate.read(job, public)
    rows = evaluate.contributions(job, batches)
    ours = evaluate.release(plan.plan(job, public), rows)
    kept = store.Store(job.job.store)
    assert ours.items.equals(kept.read_table(manifest, "items", tables.ITEMS).combine_chunks())
    theirs = kept.read_table(manifest, "item_pairs", tables.ITEM_PAIRS)
    order = [("row", "ascending"), ("col", "ascending")]
    assert ours.pairs.sort_by(order).equals(theirs.sort_by(order))
    [mechanism] = [each for each in manifest["mechanisms"] if each["name"] == budget.COOCCURRENCE]
    assert ours.noise_sd == mechanism["noise_sd"] / math.sqrt(2)


@pytest.mark.parametrize("split_by", ["users", "time"])
def test_trains_on_what_the_split_says_and_on_nothing_else(world, monkeypatch, split_by):
    """The rows that the release gets, as (user, item), are those of the split; so no two users are taken for one, either."""
    trained: list[pa.Table] = []
    asked: list[tuple] = []
    release_of, matrices_of = evaluate.release, evaluate._asked
    monkeypatch.setattr(evaluate, "release", lambda planned, rows: trained.append(rows) or release_of(planned, rows))
    monkeypatch.setattr(evaluate, "_asked", lambda *given: asked.append(given) or matrices_of(*given))
    job = config.load(world)[0]
    found = evaluate.run(job, split_by)
    [(met, split, _)] = asked
    ids = {item: number for number, item in enumerate(source.public_items(job).to_pylist())}
    for rows in trained:
        users, items = (rows[name].to_pylist() for name in ("privacy_id", "item_id"))
        assert len(set(users)) == found.facts["users_trained_on"]
        pairs = {(int.from_bytes(user[:8], "little"), ids[item]) for user, item in zip(users, items, strict=True)}
        assert pairs == set(zip(met.user[split.train].tolist(), met.item[split.train].tolist(), strict=True))
        assert not pairs & set(zip(met.user[split.hidden].tolist(), met.item[split.hidden].tolist(), strict=True))
    assert len(trained) == 2
