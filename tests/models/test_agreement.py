import numpy as np
import pyarrow as pa
import pytest
import scipy.sparse as sp
import scipy.stats

from data import tables
from models import agreement, ensemble, signals, stacking, training

SIZE, BLOCKS = 6, 4
N = SIZE * BLOCKS
LABEL = np.repeat(np.arange(BLOCKS), SIZE)
SIGNAL = (LABEL[:, None] == LABEL) * 10.0 + np.eye(N) * 10
SD, DRAWS = 4.0, 2_000


def noisy(rng: np.random.Generator, sd: float = SD) -> np.ndarray:
    upper = np.triu(rng.normal(0, sd, (N, N)), 1)
    return SIGNAL + upper + upper.T + np.diag(rng.normal(0, 2**0.5 * sd, N))


def released(matrix: np.ndarray) -> training.Released:
    ones = sp.csr_matrix(np.ones((N, 1), np.float32))
    ids = [f"i{item}" for item in range(N)]
    return training.Released(ids, np.full(N, 10.0), np.arange(N), matrix, SD, [training.ALL_ITEMS], ones)


def of_eigenvectors(matrix: np.ndarray, rank: int) -> agreement.Vectors:
    """A quick model: the largest eigenvectors."""
    values, vectors = np.linalg.eigh(matrix)
    return agreement.Vectors(vectors[:, -rank:] * values[-rank:], vectors[:, -rank:])


def test_a_good_model_is_told_from_a_spoiled_one() -> None:
    to_fit, split = agreement.halves(released(noisy(np.random.default_rng(0), 1.0))._replace(noise_sd=1.0))
    good = agreement.vectors_of(training.fit(to_fit, training.Settings(epochs=0)))
    found = agreement.compare(good, good.take(np.random.default_rng(1).permutation(N)), split)
    assert found.one > found.other
    assert found.low > 0


def test_a_model_of_popular_items_alone_is_below_one_of_tastes() -> None:
    """As it isn't by the sum of the cells of lists, where what is frequent always wins."""
    popularity = np.where(LABEL == 0, 3.0, 1.0)
    signal = np.outer(popularity, popularity) * (1 + (LABEL[:, None] == LABEL) - 0.3)
    taste, popular = of_eigenvectors(signal, 8), agreement.Vectors(np.ones((N, 1)) * popularity[:, None], np.ones((N, 1)))
    found = agreement.compare(taste, popular, agreement.Halves(signal, signal, 0.0))
    assert found.one > found.other > 0


def test_the_score_is_what_the_best_multiple_leaves_of_users_rows() -> None:
    users = np.random.default_rng(4).normal(size=(50, 5))
    matrix, model = users.T @ users, agreement.Vectors(*np.random.default_rng(5).normal(size=(2, 5, 2)))
    foretold = model.item @ model.history.T
    np.fill_diagonal(foretold, 0)
    guess = users @ foretold.T
    best = max((users * guess).sum() / (guess**2).sum(), 0)
    nothing = agreement.Vectors(np.zeros((5, 1)), np.zeros((5, 1)))
    found = agreement.compare(model, nothing, agreement.Halves(matrix, matrix, 0.0))
    assert found.one == pytest.approx(1 - ((users - best * guess) ** 2).sum() / (users**2).sum())
    assert found.other == 0
    assert found.low == found.high == pytest.approx(found.one)


def covered(noise_sd: float = 1.0, is_split: bool = True) -> tuple[float, int]:
    """Mean of the difference's error in its standard deviations, and in how many draws the interval has the true one.

    The model is fitted on what was split off, or else on the matrix that it is looked up in.
    """
    rng, errors, hits = np.random.default_rng(2), [], 0
    fixed = agreement.Vectors(*np.random.default_rng(3).normal(size=(2, N, 3)))
    for draw in range(DRAWS):
        matrix = noisy(rng)
        to_fit, split = agreement.halves(released(matrix), draw)
        if not is_split:
            to_fit, split = released(matrix), agreement.Halves(matrix, matrix, SD)
        fitted = of_eigenvectors(to_fit.matrix, 8)
        found = agreement.compare(fitted, fixed, split._replace(second_sd=noise_sd * split.second_sd))
        true = agreement.compare(fitted, fixed, split._replace(second=SIGNAL, second_sd=0.0))
        errors.append((found.one - found.other - true.low) / ((found.high - found.low) / (2 * 1.96)))
        hits += found.low <= true.low <= found.high
    return float(np.mean(errors)), hits


ENOUGH, TOO_MANY = scipy.stats.binom.interval(1 - 1e-7, DRAWS, 0.95)


def test_the_difference_is_unbiased_and_its_interval_holds_what_it_says() -> None:
    # The mean of 2,000 standard Gaussians is within 5.4 / sqrt(2,000), and the hits in their interval, but for 2e-7.
    bias, hits = covered()
    assert abs(bias) < 5.4 / DRAWS**0.5
    assert ENOUGH <= hits <= TOO_MANY


def test_a_model_that_knows_the_noise_is_overrated_by_it() -> None:
    """The negative control: without the split the same test sees the bias."""
    bias, hits = covered(is_split=False)
    assert bias > 5.4 / DRAWS**0.5
    assert hits < ENOUGH


@pytest.mark.parametrize("noise_sd", [0.7, 1.3])
def test_another_noise_would_be_noticed(noise_sd: float) -> None:
    assert not ENOUGH <= covered(noise_sd)[1] <= TOO_MANY


def test_the_halves_have_independent_noises_on_the_diagonal_too() -> None:
    # Sample correlation of 20,000 draws: its standard deviation is 0.007; within 5.4 of them but for 1e-7.
    n = 20_000
    rng, pairs = np.random.default_rng(6), []
    for draw in range(n // N):
        _, split = agreement.halves(released(noisy(rng)), draw)
        pairs.append([np.diag(half) - np.diag(SIGNAL) for half in (split.first, split.second)])
    first, second = np.concatenate(pairs, axis=1)
    assert abs(np.corrcoef(first, second)[0, 1]) < 5.4 / n**0.5
    assert second.std() == pytest.approx(2**0.5 * split.second_sd, rel=0.03)


def test_a_half_has_not_the_noise_by_which_models_split_it_again() -> None:
    # Of 44,850 cells: a correlation's standard deviation is 0.0047; within 5.4 of them but for 1e-7.
    zeros = released(SIGNAL)._replace(matrix=np.zeros((300, 300)), noise_sd=1.0)
    half, _ = agreement.halves(zeros)
    upper = np.triu_indices(300, 1)
    for seed in (signals.SEED, ensemble.SEED):
        again, _ = stacking.split(half.matrix, half.noise_sd, np.random.default_rng(seed))
        added = (again - half.matrix)[upper]
        assert abs(np.corrcoef(half.matrix[upper], added)[0, 1]) < 5.4 * 0.0047


def test_vectors_are_found_by_their_items() -> None:
    rows = [{"item_id": name, "embedding": [v, 1], "history_embedding": [v, 2], "bias": v} for name, v in (("a", 1), ("b", 2))]
    found = agreement.vectors_in(pa.Table.from_pylist(rows, tables.EMBEDDINGS), ["b", "a"])
    assert found.item.tolist() == [[2, 1], [1, 1]]
    assert found.history.tolist() == [[2, 2], [1, 2]]
