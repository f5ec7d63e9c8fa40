"""Co-occurrence: exact integers, sensitivity one, noise of the claimed size on every cell."""

import math

import apache_beam as beam
import hypothesis
import hypothesis.strategies as st
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import scipy.sparse as sp
from scipy import stats

from tests.transforms.example import contributions, items, run
from transforms import bounding
from transforms.privacy import budget
from transforms.release import cooccurrence, reference

STEP = 2**cooccurrence.ROW_BITS
GRID = 2**cooccurrence.GRID_BITS


def matrix(*rows: list[float]) -> sp.csr_matrix:
    return sp.csr_matrix(np.array(rows, dtype=float))


def test_rows_are_scaled_to_norm_one_and_rounded_toward_zero():
    quantised = cooccurrence.quantise_rows(matrix([3, 4, 0], [0, 0, 2], [0, 0, 0], [1, 1, 1])).toarray()
    third = int(STEP / math.sqrt(3))
    assert quantised.tolist() == [
        [int(0.6 * STEP), int(0.8 * STEP), 0],
        [0, 0, STEP - 1],  # a hair below, so that rounding never goes up
        [0, 0, 0],
        [third, third, third],
    ]


@pytest.mark.parametrize("weights", [[1e-300, 1e-300], [1e150, 1e150], [1e9, 1e-9], [5e-324, 0.0]], ids=str)
def test_extreme_weights_neither_overflow_nor_vanish(weights):
    quantised = cooccurrence.quantise_rows(matrix(weights)).toarray()[0]
    assert 0.99 < np.linalg.norm(quantised / STEP) <= 1


@hypothesis.given(st.lists(st.floats(0, 1e9), min_size=1, max_size=40))
def test_one_users_outer_product_has_frobenius_norm_one_at_most(weights):
    row = cooccurrence.quantise_rows(matrix(weights))
    product = cooccurrence.exact_sums(row)
    assert sum(int(cell) ** 2 for cell in product.ravel()) <= GRID**2


def test_sums_are_exact_in_any_order_and_by_blocks(monkeypatch):
    monkeypatch.setattr(cooccurrence, "BLOCK_ROWS", 7)
    rng = np.random.default_rng(0)
    rows = cooccurrence.quantise_rows(sp.random(200, 30, 0.2, "csr", rng=rng))
    exact = np.zeros((30, 30), object)
    for row in rows.toarray().tolist():
        exact += np.outer(np.array(row, object), np.array(row, object))
    assert np.array_equal(cooccurrence.exact_sums(rows), exact)
    assert np.array_equal(cooccurrence.exact_sums(rows[::-1]), exact)
    assert np.array_equal(cooccurrence.exact_matrix(rows), exact)
    assert np.array_equal(cooccurrence.exact_sums(rows, 10, 20), exact[10:20, 10:])
    halves = [cooccurrence.exact_sums(rows[:50]), cooccurrence.exact_sums(rows[50:])]
    assert np.array_equal(cooccurrence.AddSums().merge_accumulators([None, *halves]), exact)


def test_adding_a_sum_leaves_its_parts_alone():
    parts = [np.ones((2, 2), np.int64), np.ones((2, 2), np.int64)]
    adding = cooccurrence.AddSums()
    total = adding.add_input(adding.add_input(adding.create_accumulator(), parts[0]), parts[1])
    assert total.tolist() == [[2, 2], [2, 2]]
    assert parts[0].tolist() == [[1, 1], [1, 1]]


def test_partial_sums_follow_the_kept_items_order_and_leave_others_out():
    rows = contributions(("ann", "a", "view", 1, 3.0), ("ann", "b", "view", 1, 4.0), ("ann", "z"), ("bob", "b"))
    [(block, sums)] = cooccurrence.partial_sums(rows, items("b", "a"))
    three, four, one = int(0.6 * STEP), int(0.8 * STEP), STEP - 1
    assert block == (0, 2, 2)
    assert sums.tolist() == [[four * four + one * one, four * three], [four * three, three * three]]


def test_every_block_is_released_though_nobody_is_in_it(monkeypatch):
    monkeypatch.setattr(cooccurrence, "BLOCK_ROWS", 2)
    assert list(cooccurrence.empty_sums(items("a", "b", "c"))) == [((0, 2, 3), None), ((2, 3, 3), None)]
    assert cooccurrence.release_block(((2, 3, 3), None), 1.0).num_rows == 1
    assert cooccurrence.release_block(((0, 2, 3), None), 1.0).num_rows == 5


@pytest.mark.parametrize(("n_items", "rows"), [(1, 1), (4000, 512), (20_000, 209)])
def test_blocks_have_whole_rows_and_no_more_cells_than_fit(n_items, rows):
    blocks = cooccurrence.blocks(n_items)
    assert blocks[0] == (0, rows, n_items)
    assert [block[0] for block in blocks[1:]] == [block[1] for block in blocks[:-1]]
    assert blocks[-1][1] == n_items


@pytest.mark.parametrize("cells", [1, 4, 7, 1 << 16])
def test_slices_are_parts_of_their_blocks_and_together_the_whole(monkeypatch, cells):
    monkeypatch.setattr(cooccurrence, "BLOCK_ROWS", 3)
    monkeypatch.setattr(cooccurrence, "_SLICE_CELLS", cells)
    rows = contributions(*((user, item) for user, items in (("ann", "abcd"), ("bob", "bd"), ("cat", "ad")) for item in items))
    kept, whole = items(*"abcd"), np.zeros((4, 4), np.int64)
    found = list(cooccurrence.partial_sums(rows, kept))
    for (first, last, _), sums in found:
        assert (last - first == 1) or (last - first) * 4 <= cells
        whole[first:last, first:] = sums
    quantised = cooccurrence.quantise_rows(bounding.user_rows(rows, cooccurrence.kept_items(kept)).weights)
    expected = cooccurrence.exact_sums(quantised)
    assert np.array_equal(np.triu(whole), np.triu(expected))
    assert [block for block, _ in cooccurrence.empty_sums(kept)] == [block for block, _ in found]


def test_a_row_is_scaled_over_all_its_blocks(monkeypatch):
    """One user's sums have norm 1 over all blocks together; the control, scaled block by block, has more."""
    rows = sp.csr_matrix(np.ones((1, 6)))
    whole = sum(np.sum((cooccurrence.exact_sums(cooccurrence.quantise_rows(rows), i, i + 2) / GRID) ** 2) for i in (0, 2, 4))
    assert whole <= 1
    apart = cooccurrence.quantise_rows(rows.reshape(3, 2).tocsr())
    assert sum(np.sum((cooccurrence.exact_sums(row) / GRID) ** 2) for row in apart) > 2


def test_a_released_block_is_the_upper_triangle_of_its_rows():
    sums = np.array([[6, 7], [7, 9]]) * GRID
    table = cooccurrence.release_block(((1, 3, 3), sums), 1e-6)
    assert [(row["row"], row["col"]) for row in table.to_pylist()] == [(1, 1), (1, 2), (2, 2)]
    assert table["value"].to_pylist() == pytest.approx([6, 7, 9], abs=1e-4)


@pytest.mark.parametrize("off_diagonal", [True, False])
@pytest.mark.parametrize(("scale", "accepted"), [(1.0, True), (0.7, False), (1.3, False)])
def test_noise_has_the_charged_scale(off_diagonal, scale, accepted):
    n = 400
    zeros = ((0, n, n), None)
    cells = pa.concat_tables([cooccurrence.release_block(zeros, 5.0 * scale) for _ in range(10)])
    on_diagonal = cells["row"].to_numpy() == cells["col"].to_numpy()
    values = cells["value"].to_numpy()[on_diagonal != off_diagonal]
    claimed = 5.0 / math.sqrt(2) if off_diagonal else 5.0
    # Fresh keys: Kolmogorov-Smirnov at a flake probability of 1e-6.
    assert (stats.kstest(values / claimed, "norm").pvalue > 1e-6) == accepted


def test_attempts_and_blocks_share_no_noise(monkeypatch):
    zeros = ((0, 300, 300), None)

    def share_noise() -> bool:
        first, second = (cooccurrence.release_block(zeros, 1.0)["value"].to_numpy() for _ in range(2))
        return abs(np.corrcoef(first, second)[0, 1]) > 5.3 / math.sqrt(len(first))  # flake probability 1e-7

    assert not share_noise()
    monkeypatch.setattr(cooccurrence.noise, "fresh_key", lambda: bytes(32))  # the control: a reused key is caught
    assert share_noise()


def test_the_reference_vector_is_the_same_row_as_floats():
    rows = contributions(("ann", "a", "view", 1, 3.0), ("ann", "b", "view", 1, 4.0))
    [(_, vector)] = reference.user_vectors(rows, items("a", "b"), 3)
    three, four = int(0.6 * STEP) / STEP, int(0.8 * STEP) / STEP
    expected = [three * three, four * four, 0, math.sqrt(2) * three * four, 0, 0]
    assert vector.tolist() == pytest.approx(expected, abs=1e-15)
    [(_, sums)] = cooccurrence.partial_sums(rows, items("a", "b"))
    back = reference.pair_table(vector, items("a", "b"), 3)
    upper = sums[np.triu_indices(2)] / GRID
    assert back["value"].to_pylist() == pytest.approx(upper.tolist(), abs=1e-15)


def release(transform_of, rows: list[pa.Table], released: list[pa.Table]) -> dict[tuple[int, int], float]:
    """Runs one of the two engines; its cells by position."""

    def build(pipeline):
        known = pipeline | "Items" >> beam.Create(released)
        return pipeline | "Buckets" >> beam.Create(rows) | transform_of(known)

    return {(row["row"], row["col"]): row["value"] for table in run(build) for row in table.to_pylist()}


def exact(known):
    return cooccurrence.ReleaseCooccurrence(budget.Mechanism(budget.COOCCURRENCE, 1e-9), known)


def by_pipelinedp(known):
    mechanism = budget.Mechanism(budget.COOCCURRENCE, 1e-3)
    return reference.ReleaseReferenceCooccurrence(mechanism, known, budget.Budget(1.0, 1e-6), max_items=4)


@pytest.mark.parametrize("engine", [exact, by_pipelinedp])
def test_both_engines_release_the_same_sums(engine):
    buckets = [
        contributions(("ann", "a"), ("ann", "b"), ("bob", "b")),
        contributions(("cat", "a", "view", 1, 3.0), ("cat", "b", "view", 5, 4.0), ("cat", "z")),
    ]
    cells = release(engine, buckets, [items("a", "b")])
    assert cells == {key: pytest.approx(value, abs=0.01) for key, value in {(0, 0): 0.86, (0, 1): 0.98, (1, 1): 2.14}.items()}


@pytest.mark.parametrize("engine", [exact, by_pipelinedp])
def test_both_engines_release_the_same_cells_though_nobody_is_there(engine):
    assert sorted(release(engine, [], [items("a", "b")])) == [(0, 0), (0, 1), (1, 1)]


@pytest.mark.parametrize("engine", [exact, by_pipelinedp])
def test_nothing_is_released_without_released_items(engine):
    assert release(engine, [contributions(("ann", "a"))], []) == {}


@pytest.mark.parametrize("max_items", [0, reference.MAX_ITEMS + 1])
def test_the_reference_refuses_more_items_than_it_can_hold(max_items):
    with pytest.raises(ValueError, match=f"max_items must be in 1..{reference.MAX_ITEMS}, not {max_items}"):
        reference.ReleaseReferenceCooccurrence(
            budget.Mechanism(budget.COOCCURRENCE, 1.0), None, budget.Budget(1.0, 1e-6), max_items
        )


@pytest.mark.parametrize(("planned", "accepted"), [(1.0, True), (1 / 0.7, False)])
def test_pipelinedp_draws_the_planned_noise(planned, accepted):
    """VECTOR_SUM takes (epsilon, delta) alone: the pair given to it must stand for the planned standard deviation."""
    n = 100
    mechanism = budget.Mechanism(budget.COOCCURRENCE, 2.0)

    def build(pipeline):
        known = pipeline | "Items" >> beam.Create([items(*map(str, range(n)))])
        transform = reference.ReleaseReferenceCooccurrence(mechanism, known, budget.Budget(1.0, 1e-6), n)
        return pipeline | "Buckets" >> beam.Create([contributions()]) | transform

    [table] = run(build)
    off = table.filter(pc.not_equal(table["row"], table["col"]))["value"].to_numpy()
    # 4,950 cells, Kolmogorov-Smirnov at a flake probability of 1e-6.
    assert (stats.kstest(off / (2.0 * planned / math.sqrt(2)), "norm").pvalue > 1e-6) == accepted
