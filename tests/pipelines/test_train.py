"""`sottovoce train`: the job's settings reach the model's tables."""

import datetime as dt

import numpy as np
import pytest

from data import tables
from models import ensemble
from pipelines import release, train
from tests.pipelines import example
from tests.pipelines.example import view

PEOPLE = [view(f"user{user}", item, f"{user}{item}") for user in range(40) for item in ("ab", "cd", "abcd")[user % 3]]
GENRES = {"a": "fruit", "b": "fruit", "c": "root", "d": "root"}
ONE_OF_A_GENRE = [
    "--diversity.method=dpp",
    "--diversity.trade_off=0.5",
    "--diversity.max_per_category=1",
    "--diversity.category_feature=genre",
]


def test_recommendations_are_re_ranked_as_the_job_says(tmp_path):
    path = example.write_job(tmp_path, PEOPLE)
    release.run(example.load(path))
    found = {}
    for name, flags in (("plain", []), ("diverse", ONE_OF_A_GENRE)):
        job = example.load(path, *flags)
        model = train.run(job)
        assert model.manifest["parameters"]["diversity"] == job.diversity.model_dump()
        table = model.read_table("recommendations", tables.RECOMMENDATIONS).to_pylist()
        found[name] = [row["recommended_item_id"] for row in table if row["item_id"] == "a"]
    assert sorted(found["plain"]) == ["b", "c", "d"]
    assert sorted(GENRES[item] for item in found["diverse"]) == ["fruit", "root"]


def model_of_weeks(tmp_path, *flags):
    """The model after three weeks; in the first two a goes with b and c with d, in the last one a goes with c and b with d."""
    weeks = [("2025-01-03", ("ab", "cd")), ("2025-01-10", ("ab", "cd")), ("2025-01-17", ("ac", "bd"))]
    lines = [
        view(f"user{user}", item, f"{day}{user}{item}", time=day)
        for day, pairs in weeks
        for user in range(40)
        for item in pairs[user % 2]
    ]
    path = example.write_job(tmp_path, lines)
    job = example.load(path, "--window.size=1w", "--window.end=2025-01-22", "--window.budget_share=0.2", *flags)
    released = [release_id for _, release_id in release.run_until(job, dt.datetime(2025, 2, 1, tzinfo=dt.UTC))]
    return released, train.run(job)


@pytest.mark.parametrize(
    ("flags", "trained_on", "first"),
    [
        ([], 1, "c"),
        (["--model.windows=3"], 3, "b"),
        (["--model.windows=9"], 3, "b"),
        (["--model.windows=3", "--model.decay=0.1"], 3, "c"),
    ],
    ids=["newest alone", "sliding", "all there are", "decaying"],
)
def test_so_many_windows_are_trained_on_and_older_ones_weigh_less(tmp_path, flags, trained_on, first):
    released, model = model_of_weeks(tmp_path, *flags)
    assert model.manifest["release_ids"] == released[-trained_on:]
    table = model.read_table("recommendations", tables.RECOMMENDATIONS).to_pylist()
    assert next(row["recommended_item_id"] for row in table if row["item_id"] == "a") == first


def test_a_new_model_starts_from_the_one_before_and_lies_as_it_does(tmp_path):
    path = example.write_job(tmp_path, PEOPLE)
    release.run(example.load(path))
    first = train.run(example.load(path)).read_table("embeddings", tables.EMBEDDINGS)
    second = train.run(example.load(path, "--model.epochs=0")).read_table("embeddings", tables.EMBEDDINGS)
    old, new = (np.array(table["history_embedding"].to_pylist()) for table in (first, second))
    assert new == pytest.approx(old, abs=0.05 * np.abs(old).max())


def test_the_model_is_of_the_kind_that_the_job_says_and_tells_where_it_is_not(tmp_path, monkeypatch):
    path = example.write_job(tmp_path, PEOPLE)
    release.run(example.load(path))
    found = {}
    for kind in ("ensemble", "hybrid"):
        model = train.run(example.load(path, f"--model.kind={kind}", "--model.signal=low-rank"))
        assert model.manifest["model"] == kind
        assert model.manifest["parameters"]["kind"] == kind
        assert model.manifest["parameters"]["signal"] == "low-rank"
        found[kind] = model.read_table("embeddings", tables.EMBEDDINGS)
    assert not found["ensemble"].equals(found["hybrid"])
    monkeypatch.setattr(ensemble, "weigh", lambda *_: ensemble.Evidence(0.0, 0.0))
    model = train.run(example.load(path, "--model.kind=ensemble", "--model.signal=low-rank"))
    assert (model.manifest["model"], model.manifest["parameters"]["kind"]) == ("hybrid", "ensemble")
