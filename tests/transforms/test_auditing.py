"""Bounds from guesses: against published numbers, brute force, and guarantees that are kept or broken on purpose."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from transforms.privacy import auditing


def test_the_bound_is_the_papers():
    # Steinke, Nasr and Jagielski 2023, appendix D: 1,000 canaries, 100 guesses, 75 right, delta 1e-4.
    assert auditing.epsilon_lower_bound(1000, 100, 75, 1e-4) == pytest.approx(0.673, abs=1e-3)


@pytest.mark.parametrize(("guesses", "correct"), [(1, 1), (5, 3), (8, 8), (9, 0)])
@pytest.mark.parametrize("epsilon", [0.0, 0.7, 3.0])
def test_without_delta_the_p_value_is_that_of_coins(guesses, correct, epsilon):
    right = math.exp(epsilon) / (1 + math.exp(epsilon))
    found = sum(
        right ** sum(each) * (1 - right) ** (guesses - sum(each))
        for each in itertools.product((0, 1), repeat=guesses)
        if sum(each) >= correct
    )
    assert auditing.p_value(20, guesses, correct, epsilon, 0.0) == pytest.approx(found)


def test_delta_adds_what_the_paper_says():
    right = stats.binom(10, 1 / (1 + math.exp(-1)))
    alpha = max((right.cdf(6) - right.cdf(6 - i)) / i for i in range(1, 8))
    assert auditing.p_value(50, 10, 7, 1.0, 1e-3) == pytest.approx(right.sf(6) + 2 * 50 * 1e-3 * alpha)
    assert auditing.p_value(50, 10, 7, 1.0, 1.0) == 1


@pytest.mark.parametrize(("epsilon", "delta", "significance"), [(1.0, 0.0, 0.05), (8.0, 1e-6, 0.025)])
def test_so_many_canaries_are_needed_and_one_less_is_too_few(epsilon, delta, significance):
    needed = auditing.canaries_needed(epsilon, delta, significance)
    at, below = (auditing.epsilon_lower_bound(n, n, n, delta, significance) for n in (needed, needed - 1))
    assert below <= epsilon < at


def test_no_number_of_canaries_shows_what_delta_hides():
    with pytest.raises(ValueError, match=r"1048576 right guesses don't exceed epsilon = 1 at delta = 0\.9"):
        auditing.canaries_needed(1, 0.9)


@pytest.mark.parametrize("given", [(9, 5, 6, 1, 0), (9, 10, 5, 1, 0), (9, 5, -1, 1, 0), (9, 5, 5, -1, 0), (9, 5, 5, 1, 2)])
def test_refuses_what_no_audit_can_have_found(given):
    with pytest.raises(ValueError, match="p_value: "):
        auditing.p_value(*given)


@pytest.mark.parametrize(("scale", "holds"), [(1.0, True), (0.1, False)], ids=["as claimed", "a tenth of the noise"])
def test_a_randomised_response_is_held_to_its_epsilon(scale, holds):
    """A kept promise is called broken with probability 1e-6 at most; noise a tenth of it is caught."""
    epsilon, n = 1.0, 5_000
    rng = np.random.default_rng(0)
    coins = rng.integers(0, 2, n).astype(bool)
    told = np.where(rng.random(n) < 1 / (1 + math.exp(-epsilon / scale)), coins, ~coins)
    correct = auditing.correct_guesses(told - 0.5, coins, n)
    assert (auditing.epsilon_lower_bound(n, n, correct, 0.0, 1e-6) <= epsilon) == holds


def test_guesses_are_the_clearest_scores():
    scores, coins = np.array([3.0, -2.0, 1.0, -0.5]), np.array([True, True, True, False])
    assert [auditing.correct_guesses(scores, coins, guesses) for guesses in range(5)] == [0, 1, 1, 2, 3]


def test_a_gaussian_bound_is_below_its_claim_and_grows_with_canaries():
    # 1/sigma = 1 is (4.9, 1e-6)-DP.
    (few, at_few), (many, at_many) = (auditing.best_guesses(n, 1.0, 1e-6) for n in (200, 5_000))
    assert 0 < at_few < at_many < 4.9
    assert few < 200
    assert many < 5_000
    assert auditing.best_guesses(10, 0.1, 1e-6) == (1, 0.0)


def test_decoding_tells_canaries_apart_that_share_what_they_add():
    rng = np.random.default_rng(0)
    terms, coins = rng.random((30, 200)) < 0.3, rng.integers(0, 2, 30)
    # Noise of 1, and terms of norm 30: without what others add the coins are plain.
    rows = terms * 30 / np.sqrt(terms.sum(1, keepdims=True))
    seen = (coins - 0.5) @ rows + rng.standard_normal(200)
    assert (np.rint(auditing.decode(rows @ seen, rows @ rows.T) + 0.5) == coins).all()
    assert (((rows @ seen) > 0) != coins).any()


def test_auc_counts_pairs_and_its_interval_holds_the_truth():
    inside, outside = np.array([1.0, 2.0, 2.0]), np.array([0.0, 2.0])
    pairs = [(a > b) + (a == b) / 2 for a in inside for b in outside]
    assert auditing.auc(inside, outside)[0] == pytest.approx(np.mean(pairs))
    rng = np.random.default_rng(0)
    found = [auditing.auc(rng.normal(1, 1, 300), rng.normal(0, 1, 300)) for _ in range(400)]
    truth = auditing.largest_gaussian_auc(1.0)
    # Binomial, 400 draws at 0.95: outside 0.89..0.99 with probability below 1e-6.
    assert 0.89 < np.mean([low <= truth <= high for _, low, high in found]) < 0.99


@pytest.mark.parametrize(("epsilon", "delta"), [(0.0, 0.0), (0.0, 0.1), (1.0, 1e-6), (2.0, 0.05)])
def test_the_largest_auc_is_the_area_under_the_region(epsilon, delta):
    x = np.linspace(0, 1, 200_001)
    true = np.minimum.reduce([np.exp(epsilon) * x + delta, 1 - np.exp(-epsilon) * (1 - delta - x), np.ones(len(x))])
    assert auditing.largest_auc(epsilon, delta) == pytest.approx(np.trapezoid(true, x), abs=1e-6)
