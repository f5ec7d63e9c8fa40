"""`sottovoce evaluate` on private data: who is kept from the models is asked, with noise, once, and at a charge."""

import json
import pathlib
import re
import shutil

import numpy as np
import pyarrow as pa
import pytest

from data import database, store, tables
from models import splits
from pipelines import asking, cli, config, contract, evaluate_private, plan, publish, registry, release, source, status, train
from tests.pipelines.example import EXACT, charges, crashing, load, published, view, write_job
from transforms.ingest import pseudonym
from transforms.privacy import budget
from transforms.release import evaluation

SHARES = ["--evaluation.budget_share=0.1", "--cooccurrence.budget_share=0.7"]
FLAGS = [*SHARES, "--evaluation.held_out_share=0.4", "--cooccurrence.max_items=12"]
ITEMS = [f"i{number:02}" for number in range(12)]
PEOPLE = {
    f"user{user}": [ITEMS[(user * 5 + step * (1 + user % 3)) % 12] for step in range(4 + user % 5)] for user in range(120)
}


def write(directory: pathlib.Path, people=PEOPLE, time: str = "2025-01-10", epsilon: float = EXACT) -> pathlib.Path:
    """The job file of these people's views; the same key wherever it is."""
    lines = [view(user, item, f"{user}{item}", time=time) for user, items in people.items() for item in items]
    path = write_job(directory, lines, epsilon)
    (directory / "items.csv").write_text("item_id,title,genre\n" + "".join(f"{item},,x\n" for item in ITEMS))
    (directory / "pseudonym.key").write_text("5a" * 32)
    return path


def trained(path: pathlib.Path, *flags: str) -> config.Job:
    """Its job, with a release and a model."""
    job = load(path, *FLAGS, *flags)
    train.run(job, release.run(job))
    return job


def held_out(job: config.Job) -> list[str]:
    pseudonyms = pseudonym.pseudonymise(pa.array(PEOPLE, pa.string()), pseudonym.read_key(job.privacy.key_file))
    return pa.array(PEOPLE, pa.string()).filter(pa.array(asking.choose(job)(pseudonyms))).to_pylist()


def figures(job: config.Job) -> dict[str, list]:
    """What the job's release says: with next to no noise."""
    kept, [manifest] = store.Store(job.job.store), published(job)
    items = kept.read_table(manifest, "items", tables.ITEMS).sort_by("item_id")
    names = items.sort_by("position")["item_id"].to_pylist()
    counts = kept.read_table(manifest, "item_counts", tables.ITEM_COUNTS).to_pylist()
    pairs = kept.read_table(manifest, "item_pairs", tables.ITEM_PAIRS).to_pylist()
    return {
        "items": items["score"].to_pylist(),
        "pairs": [
            value for _, value in sorted((sorted((names[row["row"]], names[row["col"]])), row["value"]) for row in pairs)
        ],
        "counts": [(row["item_id"], row["users"]) for row in counts if row["event_type"] == "view"],
    }


@pytest.fixture(scope="module")
def ready(tmp_path_factory) -> config.Job:
    """A job with a release that held users out, a model, and budget for an evaluation."""
    return trained(write(tmp_path_factory.mktemp("ready")))


@pytest.fixture
def again(ready, tmp_path) -> pathlib.Path:
    """A copy of it, to be used up."""
    directory = ready.job.store.parent
    shutil.copytree(directory, tmp_path / "copy")
    path = tmp_path / "copy" / "job.toml"
    moved = path.read_text().replace(str(directory), str(tmp_path / "copy"))
    # The contract names the source where it was.
    path.write_text(moved.replace(f"{tmp_path}/copy/events.csv", f"{directory}/events.csv"))
    return path


def test_held_out_users_change_neither_scores_nor_pairs_and_are_counted(ready, tmp_path):
    out = held_out(ready)
    assert 20 < len(out) < 80
    without = trained(write(tmp_path / "without", {user: items for user, items in PEOPLE.items() if user not in out}))
    for name in ("items", "pairs"):
        # Noise of standard deviation 0.002 at most.
        assert figures(ready)[name] == pytest.approx(figures(without)[name], abs=0.02)
    assert figures(ready)["counts"] != figures(without)["counts"]


def test_without_a_share_everybody_is_trained_on(ready, tmp_path):
    job = load(write(tmp_path), "--cooccurrence.max_items=12")
    release.run(job)
    for name in ("items", "pairs"):
        assert figures(job)[name] != pytest.approx(figures(ready)[name], abs=0.5)
    assert figures(job)["counts"] == figures(ready)["counts"]
    settings = published(job)[0]["settings"]
    assert not [key for key in settings if key.startswith("evaluation")]
    assert {key: value for key, value in published(ready)[0]["settings"].items() if key.startswith("evaluation")} == {
        "evaluation.held_out_share": 0.4,
        "evaluation.seed": 0,
    }


def test_a_release_and_an_evaluation_of_it_cost_what_the_job_asks_for(again, capsys):
    job = load(again, *FLAGS)
    assert cli.main(["evaluate", str(again), *FLAGS, "--format", "json"]) == 0
    first = json.loads(capsys.readouterr().out)
    of_release, of_evaluation = charges(job)
    assert (of_evaluation["job"], of_evaluation["status"]) == ("test/evaluation", "published")
    [mechanism] = of_evaluation["charge"]["mechanisms"]
    assert (mechanism["name"], mechanism["l2_sensitivity"]) == (budget.EVALUATION, evaluation.sensitivity(6))
    costs = [sum(each["noise_multiplier"] ** -2 for each in one["charge"]["mechanisms"]) for one in (of_release, of_evaluation)]
    assert costs[1] / sum(costs) == pytest.approx(0.1)
    assert sum(costs) == pytest.approx(contract.open_ledger(job).known("test").capacity, rel=1e-6)
    # The same question is read back; another one is another release.
    assert cli.main(["evaluate", str(again), *FLAGS, "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out) == first
    assert len(charges(job)) == 2
    assert cli.main(["evaluate", str(again), *FLAGS, "--k", "3"]) == 7
    assert "has 0.0% left, and this release asks for 10.0% of it" in capsys.readouterr().err
    train.run(load(again, *FLAGS, "--model.epochs=0"))
    assert cli.main(["evaluate", str(again), *FLAGS]) == 7
    assert cli.main(["budget", "verify", str(again), *FLAGS]) == 0
    # The operator's figures are those of the release.
    found = status.read(job)
    assert (found.windows.released, found.windows.refused) == (1, 0)
    record = store.Store(job.job.store).run_record(of_release["attempt"])
    assert found.last_run.started.isoformat() == record["started"]


def test_a_crashed_evaluation_is_finished_at_no_further_cost(again):
    job = load(again, *FLAGS)
    with crashing("finish"):
        evaluate_private.run(job)
    assert [charge["status"] for charge in charges(job)] == ["published", "reserved"]
    found = evaluate_private.run(job)
    assert [charge["status"] for charge in charges(job)] == ["published", "published"]
    assert found.facts["release_id"] == charges(job)[1]["release_id"]


def test_means_are_those_of_the_held_out_users_but_for_noise(again):
    job = load(again, *FLAGS)
    train.run(load(again, *FLAGS, "--model.epochs=0", "--model.rank=2"))
    found = evaluate_private.run(job, k=3, n_older=1)
    kept = store.Store(job.job.store)
    models = kept.models(2)
    measure = asking.Question(kept.place, published(job)[0], models, 3, 0).prepare()
    ids = pseudonym.pseudonymise(pa.array(PEOPLE, pa.string()), pseudonym.read_key(job.privacy.key_file)).to_pylist()
    users = {
        name: int.from_bytes(pseudonymised[:8], "little")
        for name, pseudonymised in zip(PEOPLE, ids, strict=True)
        if len(set(PEOPLE[name])) >= splits.HIDDEN_ONE_IN
    }
    out = [name for name in held_out(job) if name in users]
    exact = np.mean([measure(users[name], pa.array(sorted(set(PEOPLE[name])))) for name in out], axis=0)
    shown = ["popularity", "model 2", "model 1"]
    assert [list(of) for of in found.metrics.values()] == [shown] * 3
    released = [found.metrics[metric][name].value for name in shown for metric in asking.METRICS]
    np.testing.assert_allclose(released, exact, atol=0.005)
    assert found.facts["users"]["value"] == len(out)
    assert 0.05 < exact[0] < 1
    # What an operator would see of exact figures isn't among what is shown.
    assert set(found.facts) == {
        "data", "data_set", "window_start", "window_end", "release_id", "held_out_share", "seed", "k", "total_epsilon",
        "total_delta", "l2_sensitivity", "noise_sd", "users",
    }  # fmt: skip


def test_the_database_has_every_evaluation(again, capsys):
    assert cli.main(["evaluate", str(again), *FLAGS]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(
        "test (private data), 2025-01-01T00:00:00 to 2025-02-01T00:00:00, users held out: 0.4; asked about"
    )
    assert "charged: epsilon" in lines[1]
    assert [line.split()[0] for line in lines[3:]] == ["popularity", "Recall@20", "NDCG@20", "MRR@20"]
    assert cli.main(["publish", str(again), *FLAGS]) == 0
    with database.connect(load(again, *FLAGS).job.store) as connection:
        rows = connection.sql("select model, version, metric, k, low <= value and value <= high from evaluations").fetchall()
        assert [row[:4] for row in rows] == [
            (model, version, metric, 20)
            for model, version in (("popularity", None), ("ensemble", 1))
            for metric in asking.METRICS
        ]
        assert all(row[4] for row in rows)
        spent = connection.sql("select mechanism from privacy_ledger join evaluations using (release_id)").fetchall()
        assert set(spent) == {("evaluation",)}
        told = connection.sql("select text from release_report where section = 'evaluation'").fetchall()
        assert "recall, ndcg, mrr at k = 20 of 2 models" in told[0][0]


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (
            ["--evaluation.seed=1"],
            2,
            r"model 1 was trained .* evaluation\.seed = 0, not with .* evaluation\.seed = 1: it may know",
        ),
        (["--evaluation.held_out_share=0.2"], 2, r"held_out_share = 0\.4, .* not with evaluation\.held_out_share = 0\.2"),
        (["--window.end=2025-01-20"], 2, r"trained on events from .* no window of the job any more"),
        (["--split", "time"], 2, "--split time: on private data users are held out, before a release"),
        (["--evaluation.budget_share=0", "--cooccurrence.budget_share=0.8"], 2, r"budget_share = 0: on private data"),
    ],
    ids=["seed", "share", "window", "split", "no share"],
)
def test_says_why_it_does_not_ask(ready, capsys, monkeypatch, flags, code, message):
    monkeypatch.setattr(source, "find", lambda *_: pytest.fail("must not be read"))
    assert cli.main(["evaluate", str(ready.job.store.parent / "job.toml"), *FLAGS, *flags]) == code
    shown = capsys.readouterr()
    assert shown.out == ""
    assert re.search(message, shown.err), shown.err


def test_a_model_of_everybody_is_not_asked(tmp_path, capsys):
    path = write(tmp_path)
    job = load(path, "--cooccurrence.max_items=12")
    train.run(job, release.run(job))
    assert cli.main(["evaluate", str(path), *FLAGS]) == 2
    assert "model 1 was trained on a release of 'test' with nobody held out, not with" in capsys.readouterr().err


@pytest.mark.parametrize("epsilon", [EXACT, 0.1], ids=["all items pass", "no item passes"])
def test_without_a_catalogue_models_of_what_was_made_known_are_asked(tmp_path, epsilon):
    path = write(tmp_path, epsilon=epsilon)
    path.write_text(re.sub(r"\[catalogue\]\npath = .*\nfeatures = .*\n", "", path.read_text()))
    job = trained(path)
    assert store.Store(job.job.store).latest_model().manifest["items"] == (12 if epsilon == EXACT else 0)
    found = evaluate_private.run(job)
    assert (found.metrics["recall"]["model 1"].value is None) == (epsilon == 0.1)
    assert found.facts["total_delta"] == 5e-7
    shown = list(evaluate_private.as_text(found))
    assert (evaluate_private.TOO_FEW in shown[-1]) == (epsilon == 0.1)


def test_each_release_that_a_model_was_trained_on_must_have_held_them_out(tmp_path, capsys):
    path = write(tmp_path, time="2025-01-16")
    windows = ["--window.size=1w", "--window.budget_share=0.25", "--cooccurrence.max_items=12", "--model.windows=2"]
    load(path, *windows)
    assert cli.main(["run", str(path), *windows, "--until", "2025-01-15"]) == 0
    assert cli.main(["run", str(path), *windows, *FLAGS, "--until", "2025-01-22"]) == 0
    assert len(store.Store(tmp_path / "store").latest_model().manifest["release_ids"]) == 2
    assert cli.main(["evaluate", str(path), *windows, *FLAGS]) == 2
    assert "with nobody held out, not with evaluation.held_out_share = 0.4" in capsys.readouterr().err


def test_without_a_model_there_is_nothing_to_evaluate(tmp_path, capsys):
    assert cli.main(["evaluate", str(write(tmp_path)), *FLAGS]) == 6
    assert "holds no model yet" in capsys.readouterr().err


def test_of_windows_the_newest_models_is_asked_and_no_window_is_taken_for_released(tmp_path, capsys):
    path = write(tmp_path, time="2025-01-16")
    windows = [*FLAGS, "--window.size=1w", "--window.budget_share=0.25"]
    job = load(path, *windows)
    assert cli.main(["run", str(path), *windows, "--until", "2025-01-22"]) == 0
    assert cli.main(["evaluate", str(path), *windows, "--format", "json"]) == 0
    shown = capsys.readouterr()
    found = json.loads(shown.out)
    assert (found["window_start"][:10], found["window_end"][:10]) == ("2025-01-15", "2025-01-22")
    assert found["users"]["value"] > 20
    assert [charge["job"] for charge in charges(job)] == ["test"] * 3 + ["test/evaluation"]
    whole = contract.open_ledger(job).known("test").capacity
    assert charges(job)[-1]["charge"]["mechanisms"][0]["noise_multiplier"] ** -2 == pytest.approx(whole * 0.25 * 0.1, rel=1e-6)
    assert [len(numbers) for numbers in release.settle(job)] == [3]
    assert cli.main(["run", str(path), *windows, "--until", "2025-01-29"]) == 0
    assert [charge["job"] for charge in charges(job)][-1] == "test"


def test_the_plan_of_a_job_that_holds_nobody_out_is_what_it_was(tmp_path):
    job = load(write(tmp_path))
    planned = plan.plan(job, None)
    assert list(planned.mechanisms) == [budget.SELECTION, budget.COUNTS_USERS, budget.COUNTS_EVENTS, budget.COOCCURRENCE]
    assert (planned.total.total_epsilon, planned.asked) == (EXACT, {})
    assert not [key for key in planned.settings if key.startswith("evaluation")]


def test_a_model_that_an_evaluation_finds_worse_is_not_promoted(again):
    job = load(again, *FLAGS)
    publish.run(job)
    kept = store.Store(job.job.store)
    good = kept.latest_model()
    found = {
        name: good.read_table(name, getattr(tables, name.upper())) for name in ("embeddings", "recommendations", "popular")
    }
    found["feature_embeddings"] = good.read_table("feature_embeddings", tables.FEATURE_EMBEDDINGS)
    turned = found["embeddings"]["item_id"].to_pylist()[::-1]
    found["embeddings"] = found["embeddings"].set_column(0, tables.EMBEDDINGS.field(0), pa.array(turned))
    kept.add_model(found, good.manifest)
    recalls = evaluate_private.run(job, k=3, n_older=1).metrics["recall"]
    publish.run(job)
    [first, second] = registry.described(job)
    assert (first["state"], second["why"]) == ("active", "refused: evaluation")
    assert second["figures"]["candidate"] == recalls["model 2"].value < 0.9 * recalls["model 1"].value
    assert second["figures"]["active"] == recalls["model 1"].value
