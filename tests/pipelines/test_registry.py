"""Which model people are served: what is decided, by whom, and that readers see it."""

import concurrent.futures
import dataclasses
import json
import logging

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from data import database, errors, files, store, tables
from pipelines import cli, config, contract, publish, registry, release, train, versions
from tests.pipelines.example import load, published, view, write_job
from tests.pipelines.test_windows import DAY, until

PAIRS = ("ab", "cd")
PEOPLE = [
    view(f"user{day}.{user}", item, f"{day}.{user}.{item}", DAY.format(day))
    for day in (1, 2, 3)
    for user in range(40)
    for item in PAIRS[user % 2]
]
FLAGS = ("--window.size=1d", "--window.budget_share=0.25", "--model.epochs=0")


@pytest.fixture
def flags() -> tuple[str, ...]:
    return FLAGS


@pytest.fixture
def job(tmp_path, flags) -> config.Job:
    """A job of which a day is released, trained on and published."""
    job = load(write_job(tmp_path, PEOPLE), *flags)
    go_on(job, 2)
    train.run(job)
    publish.run(job)
    return job


def go_on(job: config.Job, day: int) -> None:
    """Releases the windows that are closed then."""
    list(release.run_until(job, until(day)))


def add_model(job: config.Job, swap: bool = False, rename: bool = False) -> store.Model:
    """A copy of the newest model, which knows no newer release; spoilt: items have one another's vectors, or other names."""
    kept = store.Store(job.job.store)
    model = kept.latest_model()
    assert model is not None
    names = ("embeddings", "feature_embeddings", "recommendations", "popular")
    found = {name: model.read_table(name, getattr(tables, name.upper())) for name in names}
    if swap or rename:
        known = found["embeddings"]["item_id"].to_pylist()
        new = [{"a": "c", "c": "a"}.get(item, item) if swap else f"new {item}" for item in known]
        found["embeddings"] = found["embeddings"].set_column(0, tables.EMBEDDINGS.field(0), pa.array(new))
    return kept.add_model(found, model.manifest)


def shown(job: config.Job) -> tuple[int, str]:
    """The model in the database that people query, and the day whose counts it has."""
    with database.connect(store.Store(job.job.store).local()) as connection:
        [(model,)] = connection.sql("select version from model_versions").fetchall()
        [(day,)] = connection.sql("select distinct window_start::date::varchar from item_counts").fetchall()
    return model, day


def decided(job: config.Job) -> list[tuple[int, str, str]]:
    rows = contract.open_ledger(job).promotions(versions.name(job))
    return [(row.model, row.outcome, row.why) for row in rows]


def states(job: config.Job) -> dict[int, str]:
    return {each["model"]: each["state"] for each in registry.described(job)}


def changed(job: config.Job, **publish: object) -> config.Job:
    return job.model_copy(update={"publish": job.publish.model_copy(update=publish)})


def test_the_first_model_is_active_and_a_new_one_that_is_as_good_takes_its_place(job):
    go_on(job, 3)
    train.run(job)
    publish.run(job)
    publish.run(job)
    assert decided(job) == [(1, "active", "first"), (2, "active", "score")]
    assert states(job) == {1: "retired", 2: "active"}
    assert shown(job) == (2, "2025-01-02")
    [first, second] = registry.described(job)
    assert (first["versions"], second["versions"], first["current"], second["current"]) == ([1], [2, 3], False, True)


def test_a_refused_model_stays_out_while_counts_move_on(job, caplog, monkeypatch):
    go_on(job, 3)
    add_model(job, swap=True)
    with caplog.at_level(logging.WARNING):
        publish.run(job)
    assert shown(job) == (1, "2025-01-02")
    assert states(job) == {1: "active", 2: "candidate"}
    [warning] = [record.getMessage() for record in caplog.records if record.name == registry.__name__]
    assert "model 2 is not promoted: score" in warning
    assert "Model 1 stays active; `sottovoce models promote JOB.toml 2` overrules that." in warning
    # It isn't judged again.
    monkeypatch.setattr(registry, "figures", None)
    go_on(job, 4)
    publish.run(job)
    assert shown(job) == (1, "2025-01-03")
    assert decided(job) == [(1, "active", "first"), (2, "refused", "score")]


def test_a_model_that_was_trained_on_the_release_is_held_against_a_half_of_it(job, monkeypatch):
    """And not what the store has of it: that knows the noise of both halves."""
    train.run(job)
    again = add_model(job, swap=True)
    found = registry.scored(job, again, registry.find(store.Store(job.job.store), 1))
    assert found is not None
    assert found.candidate == found.active > 0
    assert found.low == found.high == 0


@pytest.mark.parametrize(
    ("candidate", "active", "margin", "high", "is_below"),
    [
        (95.0, 100.0, 0.05, -1.0, False),
        (94.9, 100.0, 0.05, -1.0, True),
        (94.9, 100.0, 0.05, 0.1, False),
        (99.0, 100.0, 0.0, -0.1, True),
        (-1.1, -1.0, 0.05, -0.01, True),
    ],
)
def test_the_margin_is_a_share_of_the_active_models_figure_and_noise_is_no_reason(candidate, active, margin, high, is_below):
    assert registry.Figures("score", candidate, active, -200.0, high, 1).is_below(margin) == is_below


def test_figures_say_whether_the_noise_explains_them():
    figures = registry.Figures("score", 2.0, 3.0, -2.0, 0.5, 7)
    assert str(figures) == "score 2, model 7 3; difference -1 [-2, 0.5], as the noise alone might make it"
    assert str(dataclasses.replace(figures, high=-0.5)).endswith("[-2, -0.5], more than the noise makes")


@pytest.mark.parametrize(
    ("how", "spoilt", "model", "last"),
    [
        ("always", {"swap": True}, 2, (2, "active", "always")),
        ("manual", {}, 1, (1, "active", "first")),
        ("guarded", {"rename": True}, 1, (2, "refused", "no figure")),
    ],
)
def test_how_a_model_is_promoted_is_the_jobs_to_say(job, how, spoilt, model, last):
    go_on(job, 3)
    add_model(job, **spoilt)
    publish.run(changed(job, promote=how))
    assert shown(job) == (model, "2025-01-02")
    assert decided(job)[-1] == last


def test_always_takes_what_a_guard_refused_but_not_what_is_retired(job):
    go_on(job, 3)
    add_model(job, swap=True)
    publish.run(job)
    publish.run(changed(job, promote="always"))
    assert shown(job)[0] == 2
    registry.rollback(job, None)
    publish.run(changed(job, promote="always"))
    assert shown(job)[0] == 1


def test_a_charged_evaluation_of_both_models_outweighs_their_scores_also_later(job, monkeypatch):
    go_on(job, 3)
    add_model(job, swap=True)
    publish.run(job)
    assert decided(job)[-1] == (2, "refused", "score")
    better = registry.Figures(registry.EVALUATION, 0.4, 0.3, 0.09, 0.11, 1)
    monkeypatch.setattr(registry, "evaluated", lambda job, *models: better if models == (2, 1) else None)
    publish.run(job)
    assert decided(job)[-1] == (2, "active", "evaluation")
    add_model(job)
    publish.run(job)
    assert decided(job)[-1] == (3, "active", "score")


def test_a_store_from_before_the_registry_has_the_published_model_as_its_active_one(job):
    go_on(job, 3)
    add_model(job, swap=True)
    account = contract.open_ledger(job)
    with account._database.writing() as connection:
        connection.exec_driver_sql("delete from promotions")
    assert states(job) == {1: "active", 2: "candidate"}
    assert not decided(job)
    publish.run(job)
    assert decided(job) == [(1, "active", "first"), (2, "refused", "score")]


# Going back


def two_models(job: config.Job) -> None:
    go_on(job, 3)
    train.run(job)
    publish.run(job)
    assert shown(job) == (2, "2025-01-02")


def go_back(job: config.Job, number: int | None = None) -> str:
    model, said = registry.rollback(job, number)
    publish.show(job, model)
    return said


def test_going_back_shows_the_version_of_then_and_the_next_run_brings_new_counts_to_its_model(job):
    two_models(job)
    assert go_back(job) == "model 1 is active again in place of 2"
    assert shown(job) == (1, "2025-01-01")
    assert versions.active(job) == 1
    assert states(job) == {1: "active", 2: "retired"}
    assert publish.is_due(job)
    publish.run(job)
    assert shown(job) == (1, "2025-01-02")
    assert versions.active(job) == 3
    assert not publish.is_due(job)
    assert go_back(job, 2) == "model 2 is active again in place of 1"
    assert versions.active(job) == 2


def test_without_a_version_of_the_model_it_is_published_anew(job):
    job = changed(job, keep_versions=1)
    two_models(job)
    go_back(job)
    assert shown(job) == (1, "2025-01-02")
    assert versions.active(job) == 3


def test_after_going_back_a_newly_trained_model_is_judged_against_that_one(job):
    two_models(job)
    go_back(job)
    train.run(job)
    publish.run(job)
    assert decided(job)[-2:] == [(1, "active", "rollback"), (3, "active", "score")]
    [figures] = [each["figures"] for each in registry.described(job) if each["model"] == 3]
    assert figures["against"] == 1


@pytest.mark.parametrize("step", ["_point", "show"])
def test_a_crash_before_people_see_the_model_is_made_good_by_the_next_run(job, monkeypatch, step):
    two_models(job)
    with monkeypatch.context() as crash:
        crash.setattr(database, step, lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            go_back(job)
    assert shown(job) == (2, "2025-01-02")
    assert states(job)[1] == "active"
    assert publish.is_due(job)
    publish.run(job)
    assert shown(job) == (1, "2025-01-02")


def test_a_crash_between_a_promotion_and_its_version_is_made_good_by_the_next_run(job, monkeypatch):
    go_on(job, 3)
    train.run(job)
    with monkeypatch.context() as crash:
        crash.setattr(versions, "publish", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            publish.run(job)
    assert (shown(job)[0], states(job)[2]) == (1, "active")
    publish.run(job)
    assert shown(job) == (2, "2025-01-02")
    assert decided(job) == [(1, "active", "first"), (2, "active", "score")]


def test_of_two_who_decide_at_once_one_looks_again(job, monkeypatch):
    add_model(job)
    ours = registry.figures

    def slowly(*given):
        monkeypatch.setattr(registry, "figures", ours)
        registry.promote(job, 2)
        return ours(*given)

    monkeypatch.setattr(registry, "figures", slowly)
    publish.run(job)
    assert decided(job) == [(1, "active", "first"), (2, "active", "manual")]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda number: registry.promote(job, number), [1, 2] * 4))
    rows = contract.open_ledger(job).promotions(versions.name(job))
    assert [row.number for row in rows] == list(range(1, len(rows) + 1))


def test_a_publisher_that_was_under_way_when_somebody_went_back_looks_again(job, monkeypatch):
    two_models(job)
    ours, seen = versions.publish, []

    def slowly(job, contents, before):
        seen.append(contents.model_versions["version"].to_pylist())
        if len(seen) == 1:
            go_back(job)
        return ours(job, contents, before)

    monkeypatch.setattr(versions, "publish", slowly)
    publish.run(job)
    assert seen == [[2], [1]]
    assert shown(job) == (1, "2025-01-02")


# In an object store


@pytest.fixture
def in_a_bucket(tmp_path, bucket) -> config.Job:
    job = load(write_job(tmp_path, PEOPLE), *FLAGS, f"--job.store={bucket}/store")
    go_on(job, 2)
    train.run(job)
    publish.run(job)
    return job


def test_going_back_in_an_object_store_gives_the_older_file_a_new_number(in_a_bucket, tmp_path):
    job = in_a_bucket
    two_models(job)
    host = tmp_path / "host"
    versions.pull(job, host)
    go_back(job)
    assert shown(job) == (1, "2025-01-01")
    assert versions.active(job) == 3
    assert database.current(host) == 2
    versions.pull(job, host)
    assert (database.current(host), database.models(host)) == (3, {2: 2, 3: 1})
    assert [(each["versions"], each["current"]) for each in registry.described(job)] == [([1, 3], True), ([2], False)]
    # What is active stays, though it is the oldest.
    publish.run(changed(job, keep_versions=2))
    assert shown(job) == (1, "2025-01-02")
    assert [name[:4] for name in files.names(files.join(job.job.store, "versions"))] == ["2-2-", "4-1-"]


@pytest.mark.slow
def test_a_version_that_is_not_what_its_name_says_is_not_gone_back_to(in_a_bucket):
    job = in_a_bucket
    two_models(job)
    folder = files.join(job.job.store, "versions")
    file = files.join(folder, files.names(folder)[0])
    files.write(file, files.read(file)[:-1] + b"x")
    with pytest.raises(errors.BadInputError, match="is not what the ledger names"):
        go_back(job)
    assert (versions.active(job), shown(job)) == (2, (2, "2025-01-02"))
    publish.run(job)
    assert shown(job) == (1, "2025-01-02")


# Commands


def test_the_commands_say_what_there_is_and_what_they_did(job, tmp_path, capsys):
    two_models(job)
    add_model(job, swap=True)
    go_on(job, 4)
    publish.run(job)
    path = str(tmp_path / "job.toml")

    def told(*words: str, code: int = 0) -> list[str]:
        assert cli.main(["models", words[0], path, *words[1:], *FLAGS]) == code
        given = capsys.readouterr()
        return (given.err if code else given.out).splitlines()

    head, *rows, note = told("list")
    assert head.split()[:4] == ["model", "state", "version", "trained"]
    assert [row.split()[:3] for row in rows] == [["1", "retired", "1"], ["2", "active", "2,3*"], ["3", "candidate", "-"]]
    assert "refused: score (score " in rows[2]
    assert note == "* the version that people query"
    listed = json.loads("\n".join(told("list", "--format", "json")))
    assert [each["release_ids"] for each in listed] == [
        [each["release_id"]] for each in [*published(job)[:2], published(job)[1]]
    ]
    assert listed[0]["total_epsilon"] == [published(job)[0]["total_epsilon"]]
    assert listed[0]["parameters"]["epochs"] == 0
    assert told("promote", "3")[0].startswith("model 3 is active in place of 2: score ")
    assert told("promote", "3") == ["model 3 is active already"]
    assert told("rollback") == [f"model 2 is active again in place of 3: {tmp_path}/store/versions/3.duckdb"]
    compared = told("compare", "1", "2")
    assert compared[0].startswith("model 1: score ")
    assert compared[1] == "overlap@20 of recommendations: 1.000"
    assert compared[3].split()[:2] == ["differ", "in"]
    assert compared[4].split() == ["release_ids", *(",".join(each["release_ids"]) for each in listed[:2])]
    assert json.loads("\n".join(told("compare", "1", "2", "--format", "json")))["models"] == [1, 2]
    assert "there is no model 9." in told("promote", "9", code=6)[-1]
    assert "there is no model 9." in told("rollback", "9", code=6)[-1]


def test_what_was_never_active_is_not_gone_back_to(job):
    with pytest.raises(errors.NothingThereError, match="no other model was active before"):
        registry.rollback(job, None)
    add_model(job)
    with pytest.raises(errors.NothingThereError, match="model 2 was never active: `sottovoce models promote`"):
        registry.rollback(job, 2)
    assert registry.rollback(job, 1)[1] == "model 1 is active already"


def test_a_store_without_models_has_nothing_to_list(tmp_path):
    job = load(write_job(tmp_path, PEOPLE))
    assert list(registry.as_text(registry.described(job))) == ["no model is trained yet"]


def test_overlap_is_the_mean_share_of_an_items_recommendations(job):
    ours = add_model(job)
    table = ours.read_table("recommendations", tables.RECOMMENDATIONS)
    kept = store.Store(job.job.store)
    fewer = table.filter(pc.less_equal(table["rank"], 1))
    theirs = kept.add_model(
        {"recommendations": fewer, "embeddings": ours.read_table("embeddings", tables.EMBEDDINGS)}, ours.manifest
    )
    assert registry.compared(job, ours.number, theirs.number)["overlap"] == pytest.approx(1 / 3)
