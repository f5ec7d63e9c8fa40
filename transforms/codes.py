"""Columns whose values repeat, as numbers (codes) into a dictionary: what depends on a value is worked out once for each.

A dictionary belongs to its table. Codes of two tables say the same only after `unify`.
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa


def codes(rows: pa.Table, column: str) -> np.ndarray:
    """The column's codes, one a row; it must have no nulls."""
    return rows[column].combine_chunks().indices.to_numpy()


def values(rows: pa.Table, column: str) -> pa.Array:
    """The column's dictionary."""
    return rows[column].combine_chunks().dictionary


def column(numbers: np.ndarray, dictionary: pa.Array) -> pa.DictionaryArray:
    """Joins codes and their dictionary, in as few bits as do: 8, 16 or 32."""
    kind = np.min_scalar_type(-max(1, len(dictionary)))
    return pa.DictionaryArray.from_arrays(pa.array(numbers.astype(kind)), dictionary)


def compact(given: pa.DictionaryArray) -> pa.DictionaryArray:
    """The same rows, without the values that no row has."""
    numbers = given.indices.to_numpy()
    used = np.zeros(len(given.dictionary), bool)
    used[numbers] = True
    if used.all():
        return column(numbers, given.dictionary)
    place = np.cumsum(used, dtype=np.int32) - np.int32(1)
    return column(place[numbers], given.dictionary.filter(pa.array(used)))


def unify(chunks: Sequence[pa.DictionaryArray]) -> pa.DictionaryArray:
    """Joins columns of the same kind of values; no value is twice in the dictionary, codes have 32 bits."""
    distinct = pa.concat_arrays([chunk.dictionary for chunk in chunks]).dictionary_encode()
    place = distinct.indices.to_numpy()
    starts = np.cumsum([0, *(len(chunk.dictionary) for chunk in chunks)])
    joined = np.concatenate([place[start:][chunk.indices.to_numpy()] for start, chunk in zip(starts, chunks, strict=False)])
    return pa.DictionaryArray.from_arrays(pa.array(joined), distinct.dictionary)
