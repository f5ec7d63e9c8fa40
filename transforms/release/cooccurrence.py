"""Item-item co-occurrence: exact integer sums of the users' outer products, then Gaussian noise."""

import logging
import math
from collections.abc import Iterable, Iterator

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import scipy.sparse as sp

from data import tables
from transforms import bounding, spill, threads
from transforms.privacy import budget, noise

log = logging.getLogger(__name__)

ROW_BITS = 18
GRID_BITS = 2 * ROW_BITS
"""Rows are multiples of 2^-18, so products are exact multiples of 2^-36: room for 2^26 users in int64."""


def quantise_rows(weights: sp.csr_matrix) -> sp.csr_matrix:
    """Scales each row to L2 norm 1 and rounds it toward zero to multiples of 2^-18; int64 multiples, same shape.

    A row's outer product then has Frobenius norm at most 1: the sensitivity of the sum.

    Args:
        weights: (n_users, n_items), finite and non-negative.
    """
    sizes = np.diff(weights.indptr)
    data = weights.data.astype(np.float64)
    # Divide by the largest first, so that no square over- or underflows.
    largest = np.repeat(_by_row(np.maximum, data, weights.indptr), sizes)
    data = np.divide(data, largest, out=np.zeros_like(data), where=largest > 0)
    norms = np.sqrt(np.repeat(_by_row(np.add, data * data, weights.indptr), sizes))
    data = np.divide(data, norms, out=np.zeros_like(data), where=norms > 0)
    # Toward zero, and a hair more: the division above may have rounded up.
    steps = np.floor(data * math.ldexp(1.0, ROW_BITS) * (1 - 1e-12)).astype(np.int64)
    return sp.csr_matrix((steps, weights.indices, weights.indptr), shape=weights.shape)


def _by_row(reduce: np.ufunc, data: np.ndarray, indptr: np.ndarray) -> np.ndarray:
    out = np.zeros(len(indptr) - 1, data.dtype)
    filled = np.diff(indptr) > 0
    if filled.any():
        out[filled] = reduce.reduceat(data, indptr[:-1][filled])
    return out


def exact_sums(rows: sp.csr_matrix | sp.csc_matrix, first: int = 0, last: int | None = None) -> np.ndarray:
    """Sums the outer products of quantised rows, int64 on the grid: a block of the (n_items, n_items) sum.

    The block is rows first..last and columns first.. of it: the lower triangle says the same as the upper.
    """
    return (rows[:, first:last].T @ rows[:, first:]).toarray()


BLOCK_ROWS = 512
_BLOCK_CELLS = 1 << 22
_SLICE_CELLS = 1 << 16
"""Half a megabyte: Flink sorts what it shuffles, and has 1.5 MB for a record where memory is small."""
MAX_ITEMS = 20_000
"""The largest matrix that was tried: some 200 million sums."""
MAX_AUTO_ITEMS = 5000
"""The most that are kept where the job names no number: a constant, so that equal jobs release equal tables anywhere."""


_FIXED_BYTES = 1 << 30
_BYTES_A_CELL = 32
"""Of the whole matrix, at the peak of release, training or publishing, whichever is highest; docs/performance.md has the
measurements behind it. What events need comes on top."""


def memory_needed(n_items: int) -> int:
    """Bytes that a job with a matrix of `n_items` needs."""
    return _FIXED_BYTES + _BYTES_A_CELL * n_items**2


def most_items(memory: int) -> int:
    """The largest matrix for which so many bytes do."""
    return min(MAX_ITEMS, math.isqrt(max(0, memory - _FIXED_BYTES) // _BYTES_A_CELL))


Block = tuple[int, int, int]
"""Rows first..last, last exclusive, of a matrix of n_items: its cells from column first on."""


def blocks(n_items: int) -> list[Block]:
    """The matrix as blocks of whole rows, each of which is computed in one go."""
    rows = max(1, min(BLOCK_ROWS, _BLOCK_CELLS // max(1, n_items)))
    return [(first, min(first + rows, n_items), n_items) for first in range(0, n_items, rows)]


def _by_blocks(rows: sp.csr_matrix) -> Iterator[tuple[Block, np.ndarray]]:
    found = blocks(rows.shape[1])
    columns = rows.tocsc()  # of which a block of columns is had without a search
    return zip(found, threads.map_ahead(lambda block: exact_sums(columns, *block[:2]), found), strict=True)


def exact_matrix(rows: sp.csr_matrix) -> np.ndarray:
    """Returns the whole (n_items, n_items) sum of quantised rows, int64 on the grid.

    As `exact_sums` of all rows, in about half the time: blocks above the diagonal, mirrored.
    """
    sums = np.zeros((rows.shape[1], rows.shape[1]), np.int64)
    for (first, last, _), of_block in _by_blocks(rows):
        sums[first:last, first:] = of_block
        sums[last:, first:last] = of_block[:, last - first :].T
    return sums


def slices(block: Block) -> list[Block]:
    """A block as smaller ones, each of which is shuffled as one record."""
    begin, end, n_items = block
    rows = max(1, _SLICE_CELLS // n_items)
    return [(first, min(first + rows, end), n_items) for first in range(begin, end, rows)]


def kept_items(items: pa.Table) -> pa.Array:
    """The ids of the matrix's items in order of position, from a table of data.tables.ITEMS."""
    kept = items.filter(pc.is_valid(items["position"])).sort_by("position")
    return kept["item_id"].combine_chunks()


def partial_sums(rows: pa.Table, items: pa.Table) -> Iterator[tuple[Block, np.ndarray]]:
    """Yields one bucket's part of each slice of the matrix, from CONTRIBUTIONS and ITEMS."""
    quantised = quantise_rows(bounding.user_rows(rows, kept_items(items)).weights)
    for block, of_block in _by_blocks(quantised):
        for part in slices(block):
            first, last = part[0] - block[0], part[1] - block[0]
            yield part, of_block[first:last, first:]


def empty_sums(items: pa.Table) -> Iterator[tuple[Block, None]]:
    """Yields each slice with nothing in it: it is released whether anybody is in it or not."""
    for block in blocks(len(kept_items(items))):
        for part in slices(block):
            yield part, None


class AddSums(beam.CombineFn):
    """Adds up parts of one slice, in place. None is nothing."""

    def create_accumulator(self) -> np.ndarray | None:
        return None

    def add_input(self, accumulator: np.ndarray | None, part: np.ndarray | None) -> np.ndarray | None:
        if part is None:
            return accumulator
        if accumulator is None:
            return part.copy()
        accumulator += part
        return accumulator

    def merge_accumulators(self, accumulators: Iterable[np.ndarray | None]) -> np.ndarray | None:
        total = None
        for accumulator in accumulators:
            # The first one may be kept: nobody else has it.
            total = accumulator if total is None else self.add_input(total, accumulator)
        return total

    def extract_output(self, accumulator: np.ndarray | None) -> np.ndarray | None:
        return accumulator


def release_block(block: tuple[Block, np.ndarray | None], noise_sd: float, source: noise.Source = "chacha") -> pa.Table:
    """Adds noise to the upper triangle of a block or slice: a table of data.tables.ITEM_PAIRS.

    The released vector is (diagonal, sqrt(2) * upper triangle), whose L2 norm is the matrix's Frobenius norm: standard
    deviation `noise_sd` on it is noise_sd on the diagonal and noise_sd / sqrt(2) off it.
    """
    (first, last, n_items), sums = block
    if sums is None:
        sums = np.zeros((last - first, n_items - first), np.int64)
    row, col = np.triu_indices(len(sums), m=sums.shape[1])
    diagonal = row == col
    cells = sums[row, col]
    cells[diagonal] += noise.draw(source, int(diagonal.sum()), noise_sd, GRID_BITS)
    cells[~diagonal] += noise.draw(source, int((~diagonal).sum()), noise_sd / math.sqrt(2), GRID_BITS)
    if any(last == end for _, end, _ in blocks(n_items)):
        log.info("the rows before %d of the co-occurrence matrix have their noise", last)
    positions = [(index + first).astype(np.int32) for index in (row, col)]
    return pa.table([*positions, cells * 2.0**-GRID_BITS], schema=tables.ITEM_PAIRS)


class ReleaseCooccurrence(beam.PTransform):
    """Releases the noisy co-occurrence of the kept items.

    Unit of protection: one privacy id with everything it did, added or removed. Mechanism: Gaussian on the sum of the users'
    outer products, each of Frobenius norm at most 1 (L2 sensitivity 1 of the vector (diagonal, sqrt(2) * upper triangle)).

    In: CONTRIBUTIONS, one table a bucket, or where it lies. Out: tables of data.tables.ITEM_PAIRS, one a slice.
    """

    def __init__(self, mechanism: budget.Mechanism, items: beam.PCollection[pa.Table], source: noise.Source = "chacha"):
        super().__init__()
        self._mechanism, self._items, self._source = mechanism, items, source

    def report(self) -> str:
        """Says how the numbers are made."""
        return (
            "Sum over users of the outer product of the user's row of item weights, scaled to L2 norm 1.\n"
            f"Gaussian mechanism: parameter={self._mechanism.noise_sd} on the diagonal, "
            f"{self._mechanism.noise_sd / math.sqrt(2)} off it, drawn by {self._source}; "
            "L2 sensitivity 1 of (diagonal, sqrt(2) * upper triangle)"
        )

    def expand(self, buckets: beam.PCollection[pa.Table | spill.Part]) -> beam.PCollection[pa.Table]:
        parts = buckets | "PartialSums" >> beam.FlatMap(
            lambda rows, items: (part for table in items for part in partial_sums(spill.read(rows), table)),
            beam.pvalue.AsIter(self._items),
        ).with_output_types(tuple[Block, np.ndarray | None])
        source = self._source

        def add_noise(block: tuple[Block, np.ndarray | None], noise_sd: float) -> Iterator[pa.Table]:
            yield release_block(block, noise_sd, source)

        nothing = self._items | "EmptySums" >> beam.FlatMap(empty_sums).with_output_types(tuple[Block, np.ndarray | None])
        # Added up by bucket first, beside where the parts are made: a part is as large as the whole matrix.
        summed = parts | "AddSumsOfBuckets" >> beam.CombinePerKey(AddSums())
        return (
            (summed, nothing)
            | "WithEmptySums" >> beam.Flatten()
            | "AddSums" >> beam.CombinePerKey(AddSums())
            | "AddNoise"
            >> beam.ParDo(threads.FlatMapOnThreads(add_noise), self._mechanism.noise_sd).with_output_types(pa.Table)
        )
