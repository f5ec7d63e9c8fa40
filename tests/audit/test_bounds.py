"""Lower bounds on the loss: near the truth where it is known, and above it no more often than they say."""

import numpy as np
import pytest
from scipy import stats

from tests.audit import bounds


@pytest.fixture
def rng() -> np.random.Generator:
    """For each test anew: what one draws doesn't hang on which others ran before."""
    return np.random.default_rng(7)


def gaussians(rng: np.random.Generator, mu: float, runs: int) -> bounds.Sample:
    return bounds.Sample(rng.normal(0, 1, runs), rng.normal(mu, 1, runs))


@pytest.mark.parametrize(("hits", "runs"), [(0, 10), (3, 10), (10, 10), (500, 1000)])
def test_clopper_pearson_is_where_so_few_or_so_many_hits_are_as_rare_as_said(hits, runs):
    high, low = bounds.upper(hits, runs, 0.01), bounds.lower(hits, runs, 0.01)
    assert stats.binom.cdf(hits, runs, high) == pytest.approx(1.0 if hits == runs else 0.01)
    assert stats.binom.sf(hits - 1, runs, low) == pytest.approx(0.01 if hits else 1.0)


@pytest.mark.parametrize("mu", [0.0, 0.5, 1.5])
def test_a_bound_on_mu_is_seldom_above_it_and_seldom_far_below(rng, mu):
    found = [bounds.mu(gaussians(rng, mu, 20_000), mu / 2, 0.05) for _ in range(200)]
    # Binomial(200, 0.05) is above 35 with a probability of 1e-10; the seed is fixed besides.
    assert np.sum(np.array(found) > mu) <= 35
    assert np.median(found) >= mu - 0.05


def test_a_bound_on_epsilon_is_near_that_of_randomised_response(rng):
    """Truth with probability 3/4: epsilon is log 3 at delta 0, either way round."""
    truth = bounds.Sample(*(rng.binomial(1, p, 100_000).astype(float) for p in (0.25, 0.75)))
    event = bounds.cut_for(truth, 0.0)
    assert np.log(3) - 0.05 < bounds.epsilon(truth, event, 0.0, 0.05) < np.log(3)


def test_who_changes_nothing_shows_nothing(rng):
    same = gaussians(rng, 0.0, 1000)
    assert bounds.epsilon_of(bounds.mu(same, 0.0, 1e-6), 1e-6) == 0
    assert bounds.epsilon(same, (0.0, True), 0.05, 1e-6) == 0
