"""From a synthetic world to SQL, by the commands a user types."""

import collections
import json

import pytest

from pipelines import cli


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A small world, released with little noise, trained and published."""
    directory = tmp_path_factory.mktemp("world")
    patch = pytest.MonkeyPatch()
    patch.setenv("XDG_STATE_HOME", str(directory / "state"))
    for command in (
        ["synth", str(directory), "--users", "1500", "--items", "100", "--seed", "7"],
        ["key", str(directory / "pseudonym.key")],
        ["budget", "init", str(directory / "job.toml"), "--privacy.total_epsilon", "20"],
        ["run", str(directory / "job.toml"), "--privacy.total_epsilon", "20", "--counts.max_partitions_contributed=10"],
    ):
        assert cli.main(command) == 0
    yield directory
    patch.undo()


def ask(sql: str, capfdbinary) -> list[dict]:
    assert cli.main(["query", sql, "--format", "json"]) == 0
    return json.loads(capfdbinary.readouterr().out)


def test_recommendations_follow_the_planted_tastes(world, capfdbinary):
    genres = {row["item_id"]: set(row["genre"]) for row in ask("select item_id, genre from items", capfdbinary)}
    pairs = ask("select item_id, recommended_item_id from recommendations where rank <= 5", capfdbinary)
    shared = sum(bool(genres[row["item_id"]] & genres[row["recommended_item_id"]]) for row in pairs) / len(pairs)
    by_chance = sum(bool(a & b) for a in genres.values() for b in genres.values()) / len(genres) ** 2
    assert shared > 1.2 * by_chance


def test_every_item_has_recommendations_and_readable_titles(world, capfdbinary):
    rows = ask("select item_id, count(*) as n from recommendations group by item_id", capfdbinary)
    assert collections.Counter(row["n"] for row in rows) == {20: 100}
    answer = ask("from recommend(['i000000', 'i000001'], 5)", capfdbinary)
    assert [row["rank"] for row in answer] == [1, 2, 3, 4, 5]
    assert all(row["title"] for row in answer)
    assert not {"i000000", "i000001"} & {row["item_id"] for row in answer}


def test_the_database_says_what_was_spent(world, capfdbinary):
    [period] = ask("select period, releases, spent_epsilon, spent_delta, total_epsilon from privacy_spent()", capfdbinary)
    assert period.pop("spent_epsilon") == pytest.approx(20, rel=1e-6)
    assert period == {"period": "lifetime", "releases": 1, "spent_delta": 1e-6, "total_epsilon": 20.0}
    sections = ask("select distinct section from release_report order by all", capfdbinary)
    assert [row["section"] for row in sections] == ["cooccurrence", "counts", "privacy", "selection"]


RELEASED = "has noise that was charged"
MODEL = "computed from released and public tables alone"
CATALOGUE = "public by declaration"
CONFIGURED = "from the job file, the contract and the noise planned from them, or the code's version"
RANDOM = "drawn at random"
COUNTER = "counts models of this store, which hang on commands, not on events"
DAY = "the day of the job"

PUBLISHED = {
    "items": dict.fromkeys(("item_id", "title", "genre", "maker", "price"), CATALOGUE)
    | {"score": RELEASED, "kept": RELEASED, "position": RELEASED},
    "item_counts": {
        **dict.fromkeys(("window_start", "window_end", "event_type"), CONFIGURED),
        "item_id": CATALOGUE,
        **dict.fromkeys(("users", "events", "users_low", "users_high", "events_low", "events_high"), RELEASED),
    },
    "trending_counts": {
        **dict.fromkeys(("window_start", "window_end", "event_type"), CONFIGURED),
        "item_id": "public by declaration, or released before",
        **dict.fromkeys(("users", "events", "users_low", "users_high", "events_low", "events_high"), RELEASED),
    },
    "item_pairs": dict.fromkeys(("item_id", "other_item_id", "value"), RELEASED),
    "item_embeddings": dict.fromkeys(("item_id", "embedding", "history_embedding", "bias"), MODEL),
    "feature_embeddings": dict.fromkeys(("feature", "embedding", "history_embedding", "bias"), MODEL),
    "recommendations": dict.fromkeys(("item_id", "rank", "recommended_item_id", "score"), MODEL),
    "popular": dict.fromkeys(("rank", "item_id", "score"), MODEL),
    "model_versions": {
        "version": COUNTER,
        "created": DAY,
        "release_ids": RANDOM,
        **dict.fromkeys(("model", "rank", "epochs", "parameters", "code_version"), CONFIGURED),
        "items": MODEL,
    },
    "evaluations": {
        "release_id": RANDOM,
        **dict.fromkeys(("window_start", "window_end", "model", "metric", "k"), CONFIGURED),
        "version": COUNTER,
        **dict.fromkeys(("value", "low", "high", "users", "users_low", "users_high"), RELEASED),
    },
    "privacy_ledger": {
        "release_id": RANDOM,
        "created": DAY,
        **dict.fromkeys(("data_set", "window_start", "window_end", "unit", "period", "mechanism", "noise_kind"), CONFIGURED),
        **dict.fromkeys(("l2_sensitivity", "noise_sd", "noise_multiplier", "delta"), CONFIGURED),
        **dict.fromkeys(("total_epsilon", "total_delta"), CONFIGURED),
    },
    "privacy_periods": {
        **dict.fromkeys(("data_set", "period", "unit", "composition", "total_epsilon", "total_delta"), CONFIGURED),
        **dict.fromkeys(("releases", "spent_epsilon", "spent_delta"), CONFIGURED),
    },
    "release_report": {"release_id": RANDOM, **dict.fromkeys(("section", "line", "text"), CONFIGURED)},
}
"""Why each published column may be seen. What was reserved, and so what privacy_ledger and privacy_periods have, hangs on
commands, on crashes and on refusals, which the operator answers for (docs/privacy.md)."""


def test_every_published_column_is_accounted_for(world, capfdbinary):
    rows = ask("select table_name, column_name from duckdb_columns() where not internal", capfdbinary)
    assert {(row["table_name"], row["column_name"]) for row in rows} == {
        (table, column) for table, columns in PUBLISHED.items() for column in columns
    }


def test_running_again_reads_the_release_back_and_charges_nothing(world, capfdbinary):
    flags = ["--privacy.total_epsilon=20", "--counts.max_partitions_contributed=10", "--model.epochs=0"]
    assert cli.main(["run", str(world / "job.toml"), *flags]) == 0
    assert ask("select version, epochs from model_versions", capfdbinary) == [{"version": 2, "epochs": 0}]
    assert ask("select count(*) as n from privacy_ledger", capfdbinary) == [{"n": 4}]


@pytest.mark.parametrize("flag", ["--privacy.total_epsilon=19", "--selection.budget_share=0.1"])
def test_another_query_is_another_release_and_the_budget_is_spent(world, flag, capsys):
    flags = ["--privacy.total_epsilon=20", "--counts.max_partitions_contributed=10", "--cooccurrence.budget_share=0.8"]
    shares = ["--counts.budget_share=0.1"] if "share" in flag else []
    assert cli.main(["run", str(world / "job.toml"), *flags, *shares, flag]) == 7
    assert "has 0.0% left" in capsys.readouterr().err
