"""Item features of a public catalogue as one sparse matrix."""

import collections.abc
import re
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import scipy.sparse as sp

from data.catalogue import Catalogue, FeatureKind

MIN_ITEMS = 2
"""A value that a single item has says nothing about another item: it gets no feature."""
MAX_TOKEN_SHARE = 0.5
"""A word that more than this share of the items has is grammar, not a topic."""
MAX_TOKENS = 1000
"""Words kept per text column: the most frequent ones."""
NUMBER_BUCKETS = 8
"""Quantile buckets of a number column; fewer if its values repeat."""

_WORD = re.compile(r"\w+")


class FeatureMatrix(NamedTuple):
    """`matrix` is (n_items, n_features), float32; column j is the feature `names[j]`."""

    names: list[str]
    matrix: sp.csr_matrix


class _Entries(NamedTuple):
    """Which item has which value: parallel arrays, each pair once."""

    items: np.ndarray
    values: np.ndarray


def encode(table: pa.Table, kinds: collections.abc.Mapping[str, FeatureKind]) -> FeatureMatrix:
    """Returns the features of each row of `table`, in the order of `kinds`, values in alphabetical order.

    Categorical "maker=acme", multi "genre=Comedy" (one for each), text "title:word" (lower case), number "price:q3"
    (quantile bucket, q0 the lowest). Nulls have no feature. Within a row each column weighs the same, however many
    values it has, and the row's L2 norm is 1 (0 if it has no feature).

    Raises:
        ValueError: a column is missing, or its kind is unknown.
    """
    names: list[str] = []
    blocks: list[sp.csr_matrix] = []
    for column, kind in kinds.items():
        if column not in table.column_names:
            raise ValueError(f"encode: kinds must name columns of the table, not {column!r}.")
        if kind not in _ENCODERS:
            raise ValueError(f"encode: kind of {column!r} must be one of {sorted(_ENCODERS)}, not {kind!r}.")
        block_names, block = _indicators(column, _ENCODERS[kind](table[column], table.num_rows), kind, table.num_rows)
        names += block_names
        blocks.append(_unit_rows(block))
    if not blocks:
        return FeatureMatrix([], sp.csr_matrix((table.num_rows, 0), dtype=np.float32))
    return FeatureMatrix(names, _unit_rows(sp.hstack(blocks, format="csr")).astype(np.float32))


def of_items(ids: collections.abc.Sequence[str], catalogue: Catalogue) -> FeatureMatrix:
    """Returns the features of the items, (len(ids), n_features): of one that the catalogue doesn't have, none."""
    encoded = encode(catalogue.table, catalogue.kinds)
    place = {item: row for row, item in enumerate(catalogue.item_ids)}
    # Row -1 stands for items that the catalogue doesn't have.
    padded = sp.vstack([encoded.matrix, sp.csr_matrix((1, len(encoded.names)), dtype=np.float32)], format="csr")
    rows = padded[np.array([place.get(item, padded.shape[0] - 1) for item in ids], dtype=np.int64)]
    return FeatureMatrix(encoded.names, sp.csr_matrix(rows))


def _indicators(column: str, entries: _Entries, kind: FeatureKind, n_items: int) -> tuple[list[str], sp.csr_matrix]:
    """Returns the names and the 0/1 matrix (n_items, n_values) of the values that enough items have."""
    values, codes, counts = np.unique(entries.values, return_inverse=True, return_counts=True)
    kept = counts >= MIN_ITEMS
    if kind == "text":
        kept &= counts <= MAX_TOKEN_SHARE * n_items
        frequent = np.lexsort((values, -counts))
        kept[frequent[kept[frequent]][MAX_TOKENS:]] = False
    matrix = sp.csr_matrix((np.ones(len(codes)), (entries.items, codes)), shape=(n_items, len(values)))
    separator = "=" if kind in {"categorical", "multi"} else ":"
    return [f"{column}{separator}{value}" for value in values[kept]], matrix[:, np.flatnonzero(kept)].tocsr()


def _unit_rows(matrix: sp.csr_matrix) -> sp.csr_matrix:
    norms = np.sqrt(np.asarray(matrix.multiply(matrix).sum(1)).ravel())
    return sp.csr_matrix(sp.diags(1 / np.where(norms > 0, norms, 1)) @ matrix)


def _categorical(column: pa.ChunkedArray, n_items: int) -> _Entries:
    items = np.flatnonzero(column.is_valid().to_numpy())
    return _Entries(items, _strings(column.drop_null()))


def _multi(column: pa.ChunkedArray, n_items: int) -> _Entries:
    items = pc.list_parent_indices(column).to_numpy()
    values = pc.list_flatten(column)
    valid = values.is_valid().to_numpy(zero_copy_only=False)
    return _distinct(items[valid], _strings(values.drop_null()))


def _text(column: pa.ChunkedArray, n_items: int) -> _Entries:
    words = [_WORD.findall(text.lower()) if text else [] for text in column.to_pylist()]
    items = np.repeat(np.arange(n_items), [len(w) for w in words])
    return _distinct(items, np.array([word for row in words for word in row], dtype=object))


def _number(column: pa.ChunkedArray, n_items: int) -> _Entries:
    numbers = column.cast(pa.float64()).to_numpy()
    items = np.flatnonzero(np.isfinite(numbers))
    if not len(items):
        return _Entries(items, np.array([], dtype=object))
    inner = np.arange(1, NUMBER_BUCKETS) / NUMBER_BUCKETS
    edges = np.unique(np.quantile(numbers[items], inner))
    buckets = np.searchsorted(edges, numbers[items], side="right")
    return _Entries(items, np.array([f"q{bucket}" for bucket in buckets], dtype=object))


def _strings(values: pa.ChunkedArray | pa.Array) -> np.ndarray:
    return np.array(values.to_pylist(), dtype=object)


def _distinct(items: np.ndarray, values: np.ndarray) -> _Entries:
    """Drops repeats of a value within an item."""
    if not len(items):
        return _Entries(items, values)
    names, codes = np.unique(values, return_inverse=True)
    pairs = np.unique(np.stack([items, codes]), axis=1)
    return _Entries(pairs[0], names[pairs[1]])


_ENCODERS: dict[str, collections.abc.Callable[[pa.ChunkedArray, int], _Entries]] = {
    "categorical": _categorical,
    "multi": _multi,
    "text": _text,
    "number": _number,
}
