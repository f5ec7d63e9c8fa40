"""The publishing job: released and model tables in, the next DuckDB version out."""

import datetime as dt
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from dp_accounting import gaussian_mechanism

from data import database, errors, files, ledger, store, tables
from pipelines import config, contract, evaluate_private, registry, source, versions
from transforms.ingest import kafka_client
from transforms.privacy import budget
from transforms.privacy import filter as privacy_filter

COUNTS, TRENDING = "counts", "trending"
"""Sections of a release's report: of the counts of the job's own windows, or of its short ones."""

log = logging.getLogger(__name__)


def run(job: config.Job) -> Path:
    """Publishes a model (`registry.choose`) and its release, and the newest releases' counts; returns the database's path.

    Raises:
        errors.NothingThereError: there is no model yet, nor counts of short windows.
        kafka_client.KafkaError: the version is published, but its recommendations couldn't be sent to their topic.
    """
    while True:
        try:
            return _run(job, versions.active(job))
        except database.OvertakenError as error:
            log.info("%s Looking again at what there is.", error)


def _run(job: config.Job, before: int) -> Path:
    """Publishes what there is now, in place of the version that is current by now."""
    kept = store.Store(job.job.store)
    account = contract.open_ledger(job)
    releases = account.releases(job.job.data_set)
    trending = [] if job.trending is None else kept.newest(releases, TRENDING, job.trending.keep_windows)
    model = registry.choose(job)
    if model is None and not trending:
        raise errors.NothingThereError(f"{kept.place} holds no model yet: `sottovoce train` makes one.")
    of_model = _of_model(kept, model, releases)
    counted = kept.newest(releases, COUNTS)
    evaluated = evaluate_private.published(job, kept, releases)
    version = versions.publish(
        job,
        database.Contents(
            catalogue=source.load_catalogue(job),
            items=_released(kept, of_model, "items", tables.ITEMS),
            item_counts=_released(kept, counted, "item_counts", tables.ITEM_COUNTS),
            trending_counts=_released(kept, trending, "item_counts", tables.ITEM_COUNTS),
            item_pairs=_released(kept, of_model, "item_pairs", tables.ITEM_PAIRS),
            embeddings=_trained(model, "embeddings", tables.EMBEDDINGS),
            feature_embeddings=_trained(model, "feature_embeddings", tables.FEATURE_EMBEDDINGS),
            recommendations=_trained(model, "recommendations", tables.RECOMMENDATIONS),
            popular=_trained(model, "popular", tables.POPULAR),
            model_versions=_model_versions(model),
            evaluations=_released(kept, evaluated, evaluate_private.TABLE, tables.EVALUATIONS),
            privacy_ledger=_privacy_ledger([{"release_id": each["release_id"], **each["charge"]} for each in releases]),
            privacy_periods=_privacy_periods(account, job.job.data_set),
            release_report=_release_report(of_model, counted, trending[-1:], evaluated),
        ),
        before,
    )
    log.info("published %s", version)
    for manifest in [*counted, *trending[-1:]]:
        _note_visible(kept, releases, manifest["release_id"])
    if model is not None:
        _send_recommendations(job, kept, str(model.number))
    return version


def show(job: config.Job, model: int) -> Path:
    """Shows people the model that has just been made active, at once: by a version that has it, or else by publishing anew."""
    found = versions.show(job, model)
    if found is None:
        return run(job)
    log.info("showing %s again", found)
    _send_recommendations(job, store.Store(job.job.store), str(model))
    return found


def is_due(job: config.Job) -> bool:
    """Says whether there is a release that the current database doesn't come from, or a model that it should have and has not.

    A run may have ended before it was there.
    """
    kept = store.Store(job.job.store)
    releases = contract.open_ledger(job).releases(job.job.data_set)
    shown_by = [COUNTS] if job.trending is None else [COUNTS, TRENDING]
    newest = {(name, each["release_id"]) for name in shown_by for each in kept.newest(releases, name)}
    if not newest:
        return False
    try:
        if files.is_url(kept.place):
            versions.pull(job)
        with database.connect(kept.local()) as connection:
            shown = connection.sql("select distinct section, release_id from release_report").fetchall()
            model = connection.execute("select version from model_versions").fetchone()
    except errors.NothingThereError:
        return True
    return not newest <= set(shown) or registry.history(job).active != (None if model is None else model[0])


def _of_model(kept: store.Store, model: store.Model | None, releases: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The manifest of the release that a model was trained on; nothing without a model."""
    if model is None:
        return []
    found = kept.published([release for release in releases if release["release_id"] == model.manifest["release_ids"][-1]])
    if not found:
        raise errors.NothingThereError(
            f"{kept.place} holds a model, but not the release that it was trained on: put it back, or `sottovoce train` anew."
        )
    return found


def _released(kept: store.Store, manifests: Sequence[dict[str, Any]], name: str, schema: pa.Schema) -> pa.Table:
    return pa.concat_tables([schema.empty_table(), *(kept.read_table(manifest, name, schema) for manifest in manifests)])


def _note_visible(kept: store.Store, releases: Sequence[Mapping[str, Any]], release_id: str) -> None:
    """Keeps for the operator when a release first came to be in the database that people query."""
    [attempt] = [release["attempt"] for release in releases if release["release_id"] == release_id]
    record = kept.find_run_record(attempt)
    if record is not None and "visible" not in record:
        kept.add_to_run_record(attempt, {"visible": dt.datetime.now(dt.UTC).isoformat()})


def _send_recommendations(job: config.Job, kept: store.Store, model: str) -> None:
    """Sends a model's recommendations to the job's topic for them, once, a message an item: its key."""
    if job.kafka is None or job.kafka.recommendations is None:
        return
    sent, this = files.join(kept.operator(), "recommendations.json"), [job.kafka.recommendations, model]
    if files.exists(sent) and json.loads(files.read(sent)) == this:
        return
    with database.connect(kept.local()) as connection:
        messages = connection.sql("""
            select item_id, json_object(
                'version', (select version from model_versions), 'item_id', item_id,
                'recommended', list({item_id: recommended_item_id, rank: rank, score: score} order by rank)
            )::varchar from recommendations group by item_id order by item_id
        """).fetchall()
    topic = job.kafka.recommendations
    kafka_client.partitions(job.kafka.connection, topic, "WRITE")
    with kafka_client.producer(job.kafka.connection) as producer:
        kafka_client.send(
            producer, topic, ({"key": item_id.encode(), "value": message.encode()} for item_id, message in messages)
        )
    store.write_json(sent, this)
    log.info("sent the recommendations of %d items to %s", len(messages), topic)


def _trained(model: store.Model | None, name: str, schema: pa.Schema) -> pa.Table:
    return schema.empty_table() if model is None else model.read_table(name, schema)


def _time(text: str) -> dt.datetime:
    return dt.datetime.fromisoformat(text)


def _model_versions(model: store.Model | None) -> pa.Table:
    if model is None:
        return tables.MODEL_VERSIONS.empty_table()
    row = {
        **model.manifest,
        "version": model.number,
        "created": _time(model.manifest["created"]),
        "parameters": json.dumps(model.manifest["parameters"]),
    }
    return pa.Table.from_pylist([row], tables.MODEL_VERSIONS)


def _privacy_ledger(charges: list[dict[str, Any]]) -> pa.Table:
    """One row for each mechanism of each charge, published or not: a reservation is spent all the same."""
    rows = [
        {
            **{key: charge[key] for key in ("release_id", "data_set", "unit", "period", "total_epsilon", "total_delta")},
            **{key: _time(charge[key]) for key in ("created", "window_start", "window_end")},
            **{key: mechanism[key] for key in ("l2_sensitivity", "noise_sd", "noise_multiplier", "delta")},
            "mechanism": mechanism["name"],
            "noise_kind": "gaussian",
        }
        for charge in charges
        for mechanism in charge["mechanisms"]
    ]
    return pa.Table.from_pylist(rows, tables.PRIVACY_LEDGER)


def _privacy_periods(account: ledger.Ledger, data_set: str) -> pa.Table:
    """One row for each period with a charge, by the contract's own filter."""
    known = account.known(data_set)
    rows = [
        {
            **{name: getattr(known, name) for name in ("data_set", "unit", "composition", "total_epsilon", "total_delta")},
            "period": spent.period,
            "releases": spent.releases,
            "spent_epsilon": privacy_filter.spent_epsilon(known.composition, spent.cost, known.noise_delta),
            "spent_delta": known.noise_delta + spent.delta,
        }
        for spent in account.spent(data_set)
        if spent.releases
    ]
    return pa.Table.from_pylist(rows, tables.PRIVACY_PERIODS)


def _release_report(
    of_model: Sequence[dict[str, Any]],
    counted: Sequence[dict[str, Any]],
    trending: Sequence[dict[str, Any]],
    evaluated: Sequence[dict[str, Any]],
) -> pa.Table:
    """The explanation of each released table, line by line, after what the whole release promises.

    Args:
        of_model: the manifest of the model's release, if there is one.
        counted, trending: those of the releases whose counts are shown.
        evaluated: those of the evaluations that are shown.
    """
    told = [("privacy", manifest, _promise(manifest)) for manifest in [*of_model, *([] if of_model else trending)]]
    told += [
        (section, manifest, manifest["reports"][section])
        for section, manifests in (
            (budget.SELECTION, of_model),
            (COUNTS, counted),
            (TRENDING, trending),
            (budget.COOCCURRENCE, of_model),
            (evaluate_private.SECTION, evaluated),
        )
        for manifest in manifests
    ]
    rows = [
        {"release_id": manifest["release_id"], "section": section, "line": number, "text": line}
        for section, manifest, text in told
        for number, line in enumerate(text.splitlines(), 1)
    ]
    return pa.Table.from_pylist(rows, tables.RELEASE_REPORT)


def _promise(manifest: dict[str, Any]) -> str:
    """What a release as a whole promises, and how its budget is spread."""
    settings = manifest["settings"]
    promise = (
        f"Unit of protection: one {manifest['unit']} with everything it did in one period ({manifest['period']}), "
        "added or removed.\n"
        f"Budget: epsilon {manifest['total_epsilon']}, delta {manifest['total_delta']}, for "
        f"{settings['privacy.expected_users']} expected users.\n"
        f"Partitions: {'public' if settings['catalogue'] else 'private'}."
    )
    total = sum(1 / mechanism["noise_multiplier"] ** 2 for mechanism in manifest["mechanisms"])
    for mechanism in manifest["mechanisms"]:
        sigma, delta = mechanism["noise_multiplier"], manifest["total_delta"]
        promise += (
            f"\n{mechanism['name']}: {1 / sigma**2 / total:.4g} of the budget (of 1/sigma^2), sigma {sigma:.6g} at L2 "
            f"sensitivity {mechanism['l2_sensitivity']:.6g}: noise of standard deviation {mechanism['noise_sd']:.6g}; alone it "
            f"would be epsilon {gaussian_mechanism.get_epsilon_gaussian(sigma, delta):.4g} at delta {delta:g}."
        )
        if mechanism["delta"]:
            promise += f" {mechanism['delta']:g} of the release's delta is set aside for what passes its threshold."
    return promise


if __name__ == "__main__":
    from pipelines import cli

    cli.main_of("publish")
