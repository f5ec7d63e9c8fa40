"""How good the job's recommendations are, on events that nobody's privacy hangs on: public or synthetic ones. For private
ones there is pipelines.evaluate_private.

The model in the store has read everybody, so also those from whom items are hidden here: what it recommends to them it may know
from them. It is not what is measured. The command takes the users (or the time) to be asked about out, makes of the others a
release as the job would, by the release's own functions and with the noise of the job's budget, and trains on that as the job
does. Nothing of it is kept, charged or published. The job's own release has more users, and should be a little better.

The figures are exact, and so for data that are nobody's secret alone: on private data each would be a query to be charged.
"""

import dataclasses
import datetime as dt
import json
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import scipy.sparse as sp

from data import errors, tables
from data.catalogue import Catalogue
from models import evaluation, features, ranking, rerank, splits, training
from pipelines import config, plan, source
from transforms import bounding
from transforms.ingest import decode, events
from transforms.privacy import budget
from transforms.release import cooccurrence, selection

SplitBy = Literal["users", "time"]

TEST_SHARE = 0.2
"""Of the interactions, those in the test of a split by time where the job names no time."""
POPULARITY, WITHOUT_NOISE, RERANKED = "popularity", "without noise", "re-ranked"
SHOWN_CATEGORIES = 20
"""The largest; as JSON all are there."""
NO_NOISE = 1e-6
"""The noise multiplier of the model "without noise": the same steps, and nothing that anybody could see of it."""

Figures = dict[str, dict[str, float]]
"""By name and model."""

log = logging.getLogger(__name__)


class Report(NamedTuple):
    """What was found.

    Attributes:
        facts: what was evaluated, and how.
        metrics: by metric and model; coverage is one figure of all users together and has no interval.
        slices: by slice: how many items it has, from how many users any of them is hidden, and the recall of these by model.
        audit: what re-ranking has done: by figure and model, the job's before and after; empty without [diversity].
        category_shares: the same by category.
    """

    facts: dict[str, Any]
    metrics: dict[str, dict[str, evaluation.Interval | float]]
    slices: dict[str, tuple[int, int, dict[str, evaluation.Interval | None]]]
    audit: Figures
    category_shares: Figures


class Release(NamedTuple):
    """ITEMS, ITEM_PAIRS and the noise off the matrix's diagonal."""

    items: pa.Table
    pairs: pa.Table
    noise_sd: float


class _Model(NamedTuple):
    """A model as it ranks; `vectors` (n_items, d), zeros where it doesn't know the item."""

    scores: ranking.Scores
    vectors: np.ndarray


class _Asked(NamedTuple):
    """Those who are asked: matrices (n_users, n_items) of ones; and what the models have been trained on."""

    history: sp.csr_matrix
    hidden: sp.csr_matrix
    train: sp.csr_matrix


def run(job: config.Job, split_by: SplitBy = "users", k: int = 20) -> Report:
    """Trains on a part of the job's events and measures recommendations against the rest.

    Raises:
        config.JobFileError: the job isn't one over whole files.
        ValueError: it says that its data are private.
        errors.RefusedError: too many rows are malformed.
        errors.BadInputError: there is nobody to ask. And what `source.find` and `source.load_catalogue` raise.
    """
    check(job, "evaluate")
    public = source.load_catalogue(job)
    public_ids = source.ids_of(public)
    batches = read(job, public_ids)
    ids = public_ids if public_ids is not None else _distinct_items(batches)
    rows = _numbered(batches, ids)
    met = splits.first_meetings(*rows)
    split, is_train, how = _split(job, split_by, met, rows)
    asked = _asked(met, split, len(ids))
    log.info("training on %d users, asking %d", asked.train.shape[0], asked.hidden.shape[0])
    trained_on = contributions(job, batches, is_train)
    planned = plan.plan(job, public_ids)
    place = {item: number for number, item in enumerate(ids.to_pylist())}
    released = release(planned, trained_on)
    popularity, private = _popularity(released.items, place), f"epsilon {planned.total.total_epsilon:g}"
    model = _model(job, released, public, place)
    scores = {
        POPULARITY: ranking.same_for_all(popularity, np.arange(len(ids))),
        private: model.scores,
        WITHOUT_NOISE: _model(job, release(without_noise(planned), trained_on), public, place).scores,
    }
    lists = {name: ranking.rank(score, asked.history, k) for name, score in scores.items()}
    audit: tuple[Figures, Figures] = ({}, {})
    if (diversity := job.diversity.settings) is not None:
        known = np.maximum(popularity, 0)  # -inf: not released
        items = rerank.describe(ids.to_pylist(), model.vectors, known, public, diversity)
        lists[RERANKED] = _reranked(model.scores, asked.history, items, k, diversity)
        audit = _audit({name: lists[name] for name in (private, RERANKED)}, items, asked)
    vectors, alike = _vectors(public, asked.train, job.diversity.features)
    facts = {
        "data": job.evaluation.data,
        "data_set": job.job.data_set,
        "split": split_by,
        **how,
        "k": k,
        "total_epsilon": planned.total.total_epsilon,
        "total_delta": planned.total.total_delta,
        "items": len(ids),
        "items_kept": len(cooccurrence.kept_items(released.items)),
        "users_trained_on": asked.train.shape[0],
        "users_asked": asked.hidden.shape[0],
        "items_hidden": asked.hidden.nnz,
        "diversity_of": alike,
        "diversity": job.diversity.model_dump(),
    }
    return Report(facts, _metrics(lists, asked, vectors), _slices(lists, asked), *audit)


def weights(job: config.Job, public_ids: pa.Array | None) -> tuple[pa.Array, sp.csr_matrix]:
    """Reads the job's events as they are: the ids of the items, and each user's weights of them, (n_users, n_items).

    Raises: as `run`.
    """
    check(job, "evaluate")
    batches = read(job, public_ids)
    ids = public_ids if public_ids is not None else _distinct_items(batches)
    rows = contributions(job, batches)
    return ids, bounding.user_rows(rows, ids).weights


def check(job: config.Job, command: str) -> None:
    """Makes sure that exact figures of the job's events may be shown, and that there is one window of files.

    Raises: as `run`.
    """
    if job.evaluation.data == "private":
        raise ValueError(f"{command}: the figures are exact: not for private data.")
    if job.source.kind == "kafka":
        raise config.JobFileError(f'{command}: source.kind = "kafka": it reads files alone.')
    if job.window.size != "all":
        raise config.JobFileError(
            f"{command}: window.size = {job.window.size!r}: it takes all of [start, end) as one window; say --window.size all."
        )


def read(job: config.Job, public_ids: pa.Array | None) -> list[pa.Table]:
    """Reads and decodes the job's events as a release does, with their times."""
    found = source.find(job, dt.datetime.now(dt.UTC), public_ids)
    decoding = found.reader.decoding
    reader = events.ReadAndDecode(dataclasses.replace(decoding, fields=[*decoding.fields, "event_time"]))
    reader.setup()
    decoded = [batch for fragment in found.parts for _, batch in reader.read(fragment)]
    share = decode.malformed_share(decode.add_outcomes(batch.outcomes for batch in decoded))
    if share > job.source.max_malformed_share:
        raise errors.RefusedError(
            f"{share:.1%} of the rows are malformed, above source.max_malformed_share = {job.source.max_malformed_share:g}: "
            "`sottovoce release` says why."
        )
    return [batch.events for batch in decoded if batch.events.num_rows]


def _distinct_items(batches: list[pa.Table]) -> pa.Array:
    columns = [batch["item_id"].combine_chunks() for batch in batches]
    used = [pc.unique(column).dictionary_decode() for column in columns]
    return pa.concat_arrays([pa.array([], pa.string()), *used]).unique().sort()


def _numbered(batches: list[pa.Table], ids: pa.Array) -> splits.Interactions:
    """Every event's user, item (its place in `ids`) and time, in microseconds; pairs as often as they come."""
    users, items, times = [np.empty(0, np.uint64)], [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for batch in batches:
        item = batch["item_id"].combine_chunks()
        places = pc.fill_null(pc.index_in(item.dictionary, value_set=ids), 0).to_numpy().astype(np.int64)
        users.append(bounding.user_hash(batch["privacy_id"].combine_chunks()))
        items.append(places[item.indices.to_numpy()])
        times.append(batch["event_time"].combine_chunks().cast(pa.int64()).to_numpy())
    return splits.Interactions(np.concatenate(users), np.concatenate(items), np.concatenate(times))


def _split(
    job: config.Job, split_by: SplitBy, met: splits.Interactions, rows: splits.Interactions
) -> tuple[splits.Split, np.ndarray, dict[str, Any]]:
    """The split of what was met first, which rows of all are trained on, and what to say about it."""
    section = job.evaluation
    if not len(met.user):
        raise errors.BadInputError("evaluate: the source has no event that counts.")
    if split_by == "users":
        is_train = ~splits.held_out(rows.user, section.held_out_share, section.seed)
        how = {"held_out_share": section.held_out_share, "seed": section.seed}
        return splits.by_users(met, section.held_out_share, section.seed), is_train, how
    start = splits.start_of_test(met, TEST_SHARE)
    if section.test_start is not None:
        start = (section.test_start - dt.datetime(1970, 1, 1, tzinfo=dt.UTC)) // dt.timedelta(microseconds=1)
    shown = dt.datetime(1970, 1, 1, tzinfo=dt.UTC) + dt.timedelta(microseconds=start)
    return splits.by_time(met, start), rows.time < start, {"test_start": shown.isoformat()}


def _asked(met: splits.Interactions, split: splits.Split, n_items: int) -> _Asked:
    users, trained = np.unique(met.user[split.hidden]), np.unique(met.user[split.train])
    if not len(users) or not len(trained):
        raise errors.BadInputError(
            f"evaluate: {len(trained)} users to train on and {len(users)} to ask, but there must be some of both. More events "
            "may give them, or another evaluation.held_out_share, evaluation.test_start or evaluation.seed."
        )
    return _Asked(
        splits.matrix(met, split.history, users, n_items),
        splits.matrix(met, split.hidden, users, n_items),
        splits.matrix(met, split.train, trained, n_items),
    )


def contributions(job: config.Job, batches: list[pa.Table], is_train: np.ndarray | None = None) -> pa.Table:
    """Rows as CONTRIBUTIONS, all users in one bucket: those that are trained on, or all."""
    if is_train is not None:
        ends = np.cumsum([batch.num_rows for batch in batches])
        masks = np.split(is_train, ends[:-1])
        batches = [batch.filter(pa.array(mask)) for batch, mask in zip(batches, masks, strict=True)]
    rows = [rows for batch in batches for _, rows in bounding.split_by_bucket(batch, 1)]
    return bounding.contributions(rows, job.source.event_types)


def without_noise(planned: plan.Plan) -> plan.Plan:
    """The same release with noise that nobody could see."""
    mechanisms = {name: dataclasses.replace(each, noise_multiplier=NO_NOISE) for name, each in planned.mechanisms.items()}
    return dataclasses.replace(planned, mechanisms=mechanisms)


def release(planned: plan.Plan, rows: pa.Table) -> Release:
    """What a release of these rows would say of items and pairs, less the ledger: for data that are nobody's secret."""
    params = plan.selection_params(planned)
    exact = selection.score_table(rows, params.max_partitions_contributed, planned.bounding_key)
    items = selection.release_scores(exact, params)
    noise_sd = planned.mechanisms[budget.COOCCURRENCE].noise_sd
    parts = [tables.ITEM_PAIRS.empty_table()]
    if len(cooccurrence.kept_items(items)):
        drawn_by = planned.job.cooccurrence.noise
        parts += [cooccurrence.release_block(part, noise_sd, drawn_by) for part in cooccurrence.partial_sums(rows, items)]
    return Release(items, pa.concat_tables(parts), noise_sd / math.sqrt(2))


def _popularity(items: pa.Table, place: Mapping[str, int]) -> np.ndarray:
    """The released scores, (n_items,), for every user the same; -inf: not released."""
    scores = np.full(len(place), -np.inf)
    scores[[place[item] for item in items["item_id"].to_pylist()]] = items["score"].to_numpy()
    return scores


def _model(job: config.Job, release: Release, public: Catalogue | None, place: Mapping[str, int]) -> _Model:
    """The job's model of a release, as the macro `recommend` asks it."""
    settings = job.model.settings
    released = training.read(release.items, release.pairs, release.noise_sd, public)
    found = training.train(released, public, settings).embeddings
    columns = np.array([place[item] for item in found["item_id"].to_pylist()], np.int64)
    item, history = (tables.vectors(found[name]) for name in ("embedding", "history_embedding"))
    vectors = np.zeros((len(place), item.shape[1]), np.float32)
    vectors[columns] = item
    return _Model(ranking.fold_in(item, history, found["bias"].to_numpy(), columns), vectors)


def _reranked(
    score: ranking.Scores, histories: sp.csr_matrix, items: rerank.Items, k: int, settings: rerank.Settings
) -> np.ndarray:
    """Each user's list as the job re-ranks it, (n_users, k)."""
    candidates, scores = ranking.rank_with_scores(score, histories, max(k, settings.candidates))
    return rerank.rerank(candidates, scores, items, k, settings)


def _audit(lists: Mapping[str, np.ndarray], items: rerank.Items, asked: _Asked) -> tuple[Figures, Figures]:
    """What lists are like, by figure and model, and the shares of categories; the long tail is that of the training users."""
    item_users = np.bincount(asked.train.indices, minlength=asked.train.shape[1])
    items = items._replace(is_tail=~evaluation.slices(item_users)["head"])
    found = {model: rerank.audit(shown, items) for model, shown in lists.items()}
    figures = {
        name: {model: getattr(each, name) for model, each in found.items()} for name in ("gini", "tail_share", "diversity")
    }
    shares = {
        category: {model: float(each.category_shares[number]) for model, each in found.items()}
        for number, category in enumerate(items.names)
    }
    return figures, shares


def _vectors(public: Catalogue | None, train: sp.csr_matrix, named: Sequence[str] | None) -> tuple[sp.csr_matrix, str]:
    """What makes two items alike: the catalogue's features, or those that are named; without any the users who have both."""
    if public is None or not public.kinds:
        return sp.csr_matrix(train.T), "training users"
    compared = public.only(named) if named else public
    said = f"catalogue features: {', '.join(named)}" if named else "catalogue features"
    return features.encode(compared.table, compared.kinds).matrix, said


def _metrics(
    lists: Mapping[str, np.ndarray], asked: _Asked, vectors: sp.csr_matrix
) -> dict[str, dict[str, evaluation.Interval | float]]:
    item_users, n_users = np.bincount(asked.train.indices, minlength=asked.train.shape[1]), asked.train.shape[0]
    of_users: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "recall": lambda shown: evaluation.recall_at_k(shown, asked.hidden),
        "ndcg": lambda shown: evaluation.ndcg_at_k(shown, asked.hidden),
        "mrr": lambda shown: evaluation.mrr(shown, asked.hidden),
        "novelty": lambda shown: evaluation.novelty(shown, item_users, n_users),
        "popularity_share": lambda shown: evaluation.popularity_share(shown, item_users, n_users),
        "intra_list_diversity": lambda shown: evaluation.intra_list_diversity(shown, vectors),
    }
    found: dict[str, dict[str, evaluation.Interval | float]] = {
        metric: {model: evaluation.interval(measure(shown)) for model, shown in lists.items()}
        for metric, measure in of_users.items()
    }
    found["coverage"] = {model: evaluation.coverage(shown, len(item_users)) for model, shown in lists.items()}
    return found


def _slices(
    lists: Mapping[str, np.ndarray], asked: _Asked
) -> dict[str, tuple[int, int, dict[str, evaluation.Interval | None]]]:
    found = {}
    item_users = np.bincount(asked.train.indices, minlength=asked.train.shape[1])
    for name, chosen in evaluation.slices(item_users).items():
        recalls = {model: evaluation.recall_of_items(shown, asked.hidden, chosen) for model, shown in lists.items()}
        n_users = len(next(iter(recalls.values())))
        found[name] = (
            int(chosen.sum()),
            n_users,
            {model: evaluation.interval(values) if n_users else None for model, values in recalls.items()},
        )
    return found


def as_text(report: Report) -> Iterator[str]:
    """Yields the report's lines: a table of metric by model, and one of the recall by slice."""
    facts, k = report.facts, report.facts["k"]
    split = f"split at {facts['test_start']}" if facts["split"] == "time" else f"users held out: {facts['held_out_share']:g}"
    yield (
        f"{facts['data_set']} ({facts['data']} data), {split}; {facts['users_trained_on']} users trained on, "
        f"{facts['users_asked']} asked, {facts['items_hidden']} items hidden from the models; "
        f"{facts['items_kept']} of {facts['items']} items kept"
    )
    yield "means over users, with 95 % bootstrap intervals; figures are exact, not private"
    yield ""
    names = {
        "recall": f"Recall@{k}",
        "ndcg": f"NDCG@{k}",
        "mrr": f"MRR@{k}",
        "coverage": "coverage",
        "novelty": "novelty, bits",
        "popularity_share": "popularity share (ARP)",
        "intra_list_diversity": "intra-list diversity",
    }
    models = list(report.metrics["recall"])
    yield from table(["", *models], [[name, *map(_shown, report.metrics[key].values())] for key, name in names.items()])
    yield ""
    rows = [[name, f"{items}", f"{users}", *map(_shown, of.values())] for name, (items, users, of) in report.slices.items()]
    yield from table([f"Recall@{k} of items", "items", "users", *models], rows)
    if report.audit:
        yield ""
        yield from _audit_as_text(report)


def _audit_as_text(report: Report) -> Iterator[str]:
    names = {"gini": "Gini of exposure", "tail_share": "share of the long tail", "diversity": "diversity, as re-ranked by"}
    largest = sorted(report.category_shares.items(), key=lambda share: -max(share[1].values()))[:SHOWN_CATEGORIES]
    rows = [[name, *map(_shown, report.audit[key].values())] for key, name in names.items()]
    rows += [[f"share of {category}", *map(_shown, of.values())] for category, of in largest]
    yield from table(["audit", *report.audit["gini"]], rows)


def _shown(found: evaluation.Interval | float | None) -> str:
    if found is None:
        return "-"
    return str(found) if isinstance(found, evaluation.Interval) else f"{found:.4f}"


def table(head: list[str], rows: list[list[str]]) -> Iterator[str]:
    """Yields lines of a table whose columns are as wide as they need to be."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    for row in [head, *rows]:
        yield "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()


def as_json(report: Report) -> str:
    """The report as one JSON object: facts, metrics and slices; an interval is an object of mean, low and high."""

    def plain(found: evaluation.Interval | float | None) -> Any:
        return found._asdict() if isinstance(found, evaluation.Interval) else found

    return json.dumps(
        {
            **report.facts,
            "metrics": {name: {model: plain(each) for model, each in of.items()} for name, of in report.metrics.items()},
            "slices": {
                name: {"items": items, "users": users, "recall": {model: plain(each) for model, each in of.items()}}
                for name, (items, users, of) in report.slices.items()
            },
            "audit": {**report.audit, "category_shares": report.category_shares} if report.audit else {},
        },
        indent=1,
    )


if __name__ == "__main__":
    from pipelines import cli

    cli.main_of("evaluate")
