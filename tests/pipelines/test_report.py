"""`sottovoce report`: what the page says is what the database says, whatever is in it."""

import dataclasses
import pathlib
import re

import numpy as np
import pyarrow as pa
import pytest
import scipy.sparse as sp

from data import catalogue, database, tables
from models import evaluation, rerank
from pipelines import cli, report
from tests.data.test_database import DAY, NEXT_DAY, answer, make_contents, rows
from tests.pipelines.test_page import read

EVIL = "<script>alert('x')</script>"


def publish(place: pathlib.Path, **changes: object) -> pathlib.Path:
    database.publish(place, make_contents(**changes), 5)
    return place


def text_of(store: pathlib.Path) -> str:
    """What people see, in one line."""
    with database.connect(store) as connection:
        return " ".join(" ".join(read(report.make(connection)).text).split())


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> pathlib.Path:
    return publish(tmp_path_factory.mktemp("store"))


def test_says_what_is_promised_and_what_it_cost(store):
    text = text_of(store)
    assert "Privacy report: shop" in text
    assert "protected is one user with everything it did in one period (lifetime)" in text
    assert "at most epsilon 2 and delta 1e-06" in text
    assert "exp(2) = 7.389 times" in text
    # Of both periods: releases, spent, allowed.
    assert re.search(r"shop 2026-02 1 0\.5 2 25% of epsilon 1e-06 1e-06 shop 2026-01 2 0\.6 2 30% of epsilon", text)
    # A release that is charged and not shown is there too.
    assert re.search(r"shop 0\.5 1e-06 cooccurrence, selection yes r1", text)
    assert re.search(r"shop 0\.25 1e-06 counts\.users no r2", text)
    assert "50 items per user" in text


def test_counts_are_those_of_the_newest_window_with_their_intervals(store):
    text = text_of(store)
    assert re.search(r"Of 3 numbers of users 2 are above 0 .* the other 1 are too noisy to tell", text)
    [(users, low, high)] = answer(
        store, "select users, users_low, users_high from item_counts where item_id = 'a' and users = 7"
    )
    assert f"A view {users} {low} to {high} {low} .. {high} to 21%" in text
    assert "b view -2 -3.5 to -0.5 -3.5 .. -0.5 too noisy to tell" in text
    assert text.index("c view 8") < text.index("A view 7") < text.index("b view -2")
    assert "99" not in re.findall(r"view (\d+) ", text)


def test_diversity_is_that_of_the_published_lists(tmp_path):
    lists = {"a": "cb", "b": "ca", "c": "ab"}
    recommended = rows(
        tables.RECOMMENDATIONS, *((item, rank, other, 0.5) for item, of in lists.items() for rank, other in enumerate(of, 1))
    )
    text = text_of(publish(tmp_path, recommendations=recommended))
    places = np.array([["abcd".index(other) for other in of] for of in lists.values()])
    vectors = np.array([[1, 0], [0, 1], [1, 1], [-1, 0]], np.float64)
    # Five items, one of the catalogue that has no embedding.
    gini = rerank.gini(np.bincount(places.ravel(), minlength=5))
    diversity = evaluation.intra_list_diversity(places, sp.csr_matrix(vectors)).mean()
    assert f"Gini of how often items are shown {gini:.4g}" in text
    assert f"(mean of 1 - cosine of embeddings) {diversity:.4g}" in text
    assert "lists, one an item 3" in text
    # a has the first of its genres, x; no other shown item has any.
    assert re.search(rf"category share of places x {2 / 6:.4g} ", text)


def test_text_of_the_catalogue_is_no_markup(tmp_path):
    public = catalogue.Catalogue(pa.table({"item_id": ["a"], "title": [EVIL], "genre": [[EVIL]]}), {"genre": "multi"})
    store = publish(tmp_path, catalogue=public)
    assert EVIL in text_of(store)
    with database.connect(store) as connection:
        assert EVIL.encode() not in report.make(connection)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {
                "embeddings": tables.EMBEDDINGS.empty_table(),
                "feature_embeddings": tables.FEATURE_EMBEDDINGS.empty_table(),
                "recommendations": tables.RECOMMENDATIONS.empty_table(),
                "popular": tables.POPULAR.empty_table(),
                "model_versions": tables.MODEL_VERSIONS.empty_table(),
            },
            ["No model is published: counts alone.", "There are no recommendations."],
        ),
        ({"item_counts": tables.ITEM_COUNTS.empty_table()}, ["No counts are published."]),
        (
            {
                "privacy_ledger": tables.PRIVACY_LEDGER.empty_table(),
                "privacy_periods": tables.PRIVACY_PERIODS.empty_table(),
                "release_report": tables.RELEASE_REPORT.empty_table(),
            },
            ["Privacy report: nothing released", "Nothing was released, so nothing is promised."],
        ),
        ({"catalogue": None}, ["Diversity of recommendations"]),
    ],
    ids=["counts alone", "no counts", "nothing charged", "no catalogue"],
)
def test_says_what_is_not_there(tmp_path, changes, says):
    text = text_of(publish(tmp_path, **changes))
    for line in says:
        assert line in text


def test_shows_an_evaluation_if_one_is_published(tmp_path, store):
    [(metric, low, high)] = answer(store, "select metric, low, high from evaluations limit 1")
    assert re.search(rf"Released with noise, and charged: .* {metric} .* {low:g} {high:g} ", text_of(store))
    none = publish(tmp_path, evaluations=tables.EVALUATIONS.empty_table())
    assert "No evaluation is published" in text_of(none)


def test_writes_a_file_from_a_store_or_a_job(tmp_path, store, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["report", "--store", str(store)]) == 0
    assert read((tmp_path / f"{store.name}-report.html").read_bytes())
    assert cli.main(["report", "--store", str(store), "--output", "mine.html"]) == 0
    assert (tmp_path / "mine.html").read_bytes() == (tmp_path / f"{store.name}-report.html").read_bytes()
    assert cli.main(["report", "--store", str(store), "--output", "mine.html"]) == 2
    assert "mine.html: is there already" in capsys.readouterr().err
    assert cli.main(["report", "--store", str(tmp_path / "none"), "--output", "other.html"]) == 6
    assert not (tmp_path / "other.html").exists()


def test_a_job_and_a_store_are_two_answers_to_one_question(tmp_path, store, capsys):
    assert cli.main(["report", "job.toml", "--store", str(store)]) == 2
    assert "give a job file or a store, not both" in capsys.readouterr().err
    assert cli.main(["report", "--store", str(store), "--model.rank", "3"]) == 2
    assert "flags need a job file" in capsys.readouterr().err


def test_many_releases_are_counted_and_the_newest_shown(tmp_path):
    one = make_contents().privacy_ledger.to_pylist()[0]
    many = pa.Table.from_pylist([{**one, "release_id": f"r{number}"} for number in range(1, 31)], tables.PRIVACY_LEDGER)
    text = text_of(publish(tmp_path, privacy_ledger=many))
    assert f"The newest {report.LAST_RELEASES} of 30." in text


def test_short_windows_are_mentioned(tmp_path):
    counts = rows(tables.ITEM_COUNTS, (DAY, NEXT_DAY, "a", "view", 1, 1, 0.0, 2.0, 0.0, 2.0))
    contents = dataclasses.replace(make_contents(), trending_counts=counts)
    database.publish(tmp_path, contents, 5)
    assert "there are counts of 1 short windows" in text_of(tmp_path)
