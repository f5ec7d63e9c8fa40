"""The figures of a published database as `models.world` fits a world to them: nothing else is read, and nothing charged."""

import math
from collections.abc import Mapping
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import scipy.sparse as sp

from data import database, errors
from data.catalogue import Catalogue
from models import features, world
from transforms.privacy import budget

HIDDEN_TIMES = 3
"""Without a catalogue: of items that no release has shown, at most so many times those that one has are made up."""


def read(
    store: Path, public: Catalogue | None, event_types: Mapping[str, float], expected_users: int
) -> tuple[pa.Array, world.Figures]:
    """Returns the ids of the items and what the release says of them.

    Args:
        store: whose current version is read.
        public: the job's catalogue, whose items are all there are; None: those released, and made-up ones that continue them.
        event_types: weight of each.
        expected_users: public.

    Raises:
        database.NothingPublishedError: nothing is published in the store.
        errors.NothingThereError: what is published has no model with co-occurrences.
    """
    with database.connect(store) as connection:
        noise = _noise(connection)
        if not {budget.SELECTION, budget.COOCCURRENCE} <= noise.keys():
            raise errors.NothingThereError(f"{store}: no co-occurrences are published there yet: `sottovoce run` makes them.")
        scores = connection.sql("select item_id, score, position from items where score is not null").to_arrow_table()
        matrix = _matrix(connection)
        weights = _weights(connection, event_types)
    ids = scores["item_id"].to_pylist() if public is None else public.item_ids
    place = {item: number for number, item in enumerate(ids)}
    found = np.zeros(len(ids))
    known = np.zeros(len(matrix), np.int64)
    for item, score, position in zip(*(scores[name].to_pylist() for name in scores.column_names), strict=True):
        if item not in place:
            raise errors.NothingThereError(
                f"{store}: item {item!r} was released and isn't in the catalogue any more: release and publish with this one, "
                "or give the catalogue of then (catalogue.path)."
            )
        found[place[item]] = score
        if position is not None:
            known[position] = place[item]
    if public is None:
        hidden = _continued(found)
        ids = [*ids, *(f"(hidden {number})" for number in range(len(hidden)))]
        found, own = np.r_[found, hidden], sp.csr_matrix((len(ids), 0))
    else:
        own = features.of_items(ids, public).matrix
    noise_sd = noise[budget.COOCCURRENCE] / math.sqrt(2)
    figures = world.Figures(found, noise[budget.SELECTION], known, matrix, noise_sd, own, weights, expected_users)
    return pa.array(ids, pa.string()), figures


def _noise(connection: duckdb.DuckDBPyConnection) -> dict[str, float]:
    """Standard deviation of each mechanism of the release that the model is from."""
    return dict(
        connection.sql("""
            select mechanism, noise_sd from privacy_ledger
            where release_id = (select release_ids[-1] from model_versions)
        """).fetchall()
    )


def _matrix(connection: duckdb.DuckDBPyConnection) -> np.ndarray:
    cells = connection.sql("""
        select a.position as i, b.position as j, value from item_pairs
        join items as a using (item_id) join items as b on b.item_id = other_item_id
    """).fetchnumpy()
    size = int(cells["j"].max()) + 1 if len(cells["j"]) else 0
    matrix = np.zeros((size, size))
    matrix[cells["i"], cells["j"]] = matrix[cells["j"], cells["i"]] = cells["value"]
    return matrix


def _weights(connection: duckdb.DuckDBPyConnection, event_types: Mapping[str, float]) -> tuple[tuple[float, float], ...]:
    """What items weigh, and how many of them, from the counts of users of each event type, all items together.

    An item has the weight of a user's heaviest event type; rarer types are taken to come with commoner ones, as a purchase with
    a view.
    """
    rows = connection.sql("select event_type, sum(users)::double from item_counts group by all").fetchall()
    users = {kind: max(0.0, total) for kind, total in rows}
    most, left = max(users.values(), default=0.0), 1.0
    found = []
    for kind, weight in sorted(event_types.items(), key=lambda each: -each[1]):
        share = min(left, users.get(kind, 0.0) / most) if most else 0.0
        left -= share
        if share:
            found.append((weight, share))
    return tuple(found) or ((1.0, 1.0),)


def _continued(scores: np.ndarray) -> np.ndarray:
    """Scores of items that the threshold has hidden: the power law of the rarer half of those shown goes on down to 1."""
    ranked = np.sort(np.maximum(scores, 1))[::-1]
    n = len(ranked)
    if n < 4:
        return np.empty(0)
    rank = np.arange(1, n * (1 + HIDDEN_TIMES) + 1)
    tail = slice(n // 2, n)
    power = -np.polyfit(np.log(rank[tail]), np.log(ranked[tail]), 1)[0]
    hidden = ranked[-1] * (rank[n:] / n) ** -max(power, 0.1)
    return hidden[hidden >= 1]
