"""The fitted world: what it must have in common with the one whose release it was fitted to."""

import math

import numpy as np
import pytest
import scipy.sparse as sp

from models import world

NOISE = 1.0
ITEMS, USERS = 120, 3_000


def truth(seed: int = 0) -> world.World:
    """A world of the same kind, with four tastes."""
    rng = np.random.default_rng(seed)
    popularity = -1.5 * np.log(np.arange(ITEMS) + 5.0)
    return world.World(USERS, popularity, rng.normal(0, 0.8, (ITEMS, 4)), (math.log(12), 0.5))


def release(rows: sp.csr_matrix, noise: float = NOISE, kept: int = 60) -> world.Figures:
    """What a release would say of these users."""
    rng = np.random.default_rng(7)
    sizes = np.maximum(np.diff(rows.indptr), 1)
    scores = np.asarray((sp.diags(1 / np.sqrt(sizes)) @ rows).sum(0)).ravel() + rng.normal(0, noise * 3, rows.shape[1])
    known = np.argsort(-scores)[:kept]
    part = rows[:, known]
    matrix = (part.T @ sp.diags(1 / np.maximum(np.diff(part.indptr), 1)) @ part).toarray()
    upper = np.triu(rng.normal(0, noise, matrix.shape), 1)
    matrix += upper + upper.T + np.diag(rng.normal(0, noise * math.sqrt(2), kept))
    return world.Figures(scores, noise * 3, known, matrix, noise, sp.csr_matrix((rows.shape[1], 0)), ((1.0, 1.0),), USERS)


@pytest.fixture(scope="module")
def rows() -> sp.csr_matrix:
    return truth().draw(USERS, 0)


@pytest.fixture(scope="module")
def fitted(rows) -> world.World:
    return world.fit(release(rows))


def test_has_the_users_lengths_and_popularity_of_the_world_that_it_is_fitted_to(rows, fitted):
    assert fitted.users == pytest.approx(USERS, rel=0.05)
    drawn = fitted.draw(USERS, 1)
    for share in (0.1, 0.5, 0.9):
        assert np.quantile(np.diff(drawn.indptr), share) == pytest.approx(np.quantile(np.diff(rows.indptr), share), rel=0.2)
    ours, theirs = (np.sort(np.bincount(each.indices, minlength=ITEMS))[::-1] for each in (drawn, rows))
    assert ours[:40] == pytest.approx(theirs[:40], rel=0.2)
    # Each the same item, not just the same curve.
    of_ours, of_theirs = (np.bincount(each.indices, minlength=ITEMS) for each in (drawn, rows))
    assert np.corrcoef(np.log(of_ours + 1), np.log(of_theirs + 1))[0, 1] > 0.95


def beyond_chance(rows: sp.csr_matrix) -> np.ndarray:
    """How much more often the 40 most popular items meet each other than by popularity, as a share of that: pairs (780,)."""
    together = (rows.T @ rows).toarray()
    np.fill_diagonal(together, 0)
    single = np.bincount(rows.indices, minlength=rows.shape[1])
    chance = np.outer(single, single) * together.sum() / (single.sum() ** 2 - (single**2).sum())
    return (together / chance - 1)[np.triu_indices(40, 1)]


def test_has_the_same_tastes_and_as_strong_ones(rows, fitted):
    ours, theirs = beyond_chance(fitted.draw(USERS, 1)), beyond_chance(rows)
    assert ours.std() == pytest.approx(theirs.std(), rel=0.2)
    assert np.corrcoef(ours, theirs)[0, 1] > 0.7
    without = world.World(USERS, truth().popularity, np.zeros((ITEMS, 1)), (math.log(12), 0.5))
    found = beyond_chance(world.fit(release(without.draw(USERS, 0))).draw(USERS, 1))
    assert found.std() < 0.5 * theirs.std()


def test_the_same_figures_and_seed_are_the_same_world(rows):
    first, second = (world.fit(release(rows), seed=3) for _ in range(2))
    assert (first.draw(500, 2) != second.draw(500, 2)).nnz == 0
    assert (first.draw(500, 2) != first.draw(500, 4)).nnz > 0


def test_the_first_users_of_many_are_the_users_of_few(fitted):
    assert (fitted.draw(1500, 2)[:700] != fitted.draw(700, 2)).nnz == 0


def test_noisy_tails_become_a_power_law_of_the_same_sum():
    true = 1000 / (1 + np.arange(300.0))
    noisy = true + np.random.default_rng(0).normal(0, 10, 300)
    smooth = world.smooth_scores(noisy, 10)
    assert (smooth > 0).all()
    assert smooth.sum() == pytest.approx(noisy.sum(), rel=0.05)
    # The sum of the tail has noise of 10 * sqrt(280); each of its scores has more than itself.
    assert smooth[150:].mean() == pytest.approx(true[150:].mean(), rel=0.75)
    order = np.argsort(-noisy, kind="stable")
    assert (np.diff(smooth[order]) <= 1e-9).all()


def test_without_noise_scores_stay():
    scores = np.array([5.0, 3.0, 4.0])
    assert world.smooth_scores(scores, 0.1) == pytest.approx(scores)


def test_where_noise_hides_the_users_the_public_figure_counts(rows):
    figures = release(rows, noise=NOISE)
    assert world.count_users(figures) == pytest.approx(USERS, abs=6 * math.sqrt(2 * 60))
    assert world.count_users(figures._replace(noise_sd=1e4)) == USERS


@pytest.mark.parametrize("change", [{"scores": np.zeros(ITEMS)}, {"known": np.array([], int), "matrix": np.zeros((0, 0))}])
def test_says_when_there_is_nothing_to_fit(rows, change):
    with pytest.raises(ValueError, match="no item that stands out of its noise"):
        world.fit(release(rows)._replace(**change))
