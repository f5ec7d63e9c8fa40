"""Budget: sigmas against an independent computation, and refusals."""

import math

import dp_accounting
import mpmath
import pytest
from dp_accounting import pld

from transforms.privacy import budget

SHARES = {"selection": 0.08, "counts.users": 0.06, "counts.events": 0.06, "cooccurrence": 0.8}


def composed_epsilon(multipliers: dict[str, float], delta: float) -> float:
    """dp_accounting's privacy loss distributions: another method than budget's closed form."""
    accountant = pld.PLDAccountant(dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE)
    for sigma in multipliers.values():
        accountant.compose(dp_accounting.GaussianDpEvent(sigma))
    return accountant.get_epsilon(delta)


@pytest.mark.parametrize("epsilon", [0.1, 1.0, 4.0])
@pytest.mark.parametrize("selection_delta", [0.0, 5e-7])
def test_mechanisms_together_spend_the_total_and_no_more(epsilon, selection_delta):
    multipliers = budget.noise_multipliers(budget.Budget(epsilon, 1e-6), SHARES, selection_delta)
    spent = composed_epsilon(multipliers, 1e-6 - selection_delta)
    # The PLD rounds pessimistically: a little above the exact figure, never below it by more than its grid.
    assert epsilon * 0.999 < spent < epsilon * 1.01
    less_noise = {name: 0.97 * sigma for name, sigma in multipliers.items()}
    assert composed_epsilon(less_noise, 1e-6 - selection_delta) > epsilon * 1.01


@pytest.mark.parametrize("epsilon", [0.01, 0.1, 1.0, 4.0, 16.0])
@pytest.mark.parametrize("delta", [1e-4, 1e-6, 1e-10])
def test_the_exact_delta_is_kept_to_nine_digits(epsilon, delta):
    """Balle and Wang 2018, equation 6, in 40 digits."""
    multipliers = budget.noise_multipliers(budget.Budget(epsilon, delta), SHARES)
    with mpmath.workdps(40):
        sigma = 1 / mpmath.sqrt(sum(1 / mpmath.mpf(m) ** 2 for m in multipliers.values()))
        first = mpmath.ncdf(1 / (2 * sigma) - epsilon * sigma)
        spent = first - mpmath.exp(epsilon) * mpmath.ncdf(-1 / (2 * sigma) - epsilon * sigma)
        assert (1 - 1e-6) * delta < spent <= delta * (1 + 1e-9)


def test_a_share_is_a_share_of_the_inverse_variance():
    multipliers = budget.noise_multipliers(budget.Budget(1.0, 1e-6), SHARES)
    inverse = {name: 1 / sigma**2 for name, sigma in multipliers.items()}
    assert {name: value / sum(inverse.values()) for name, value in inverse.items()} == pytest.approx(SHARES)


@pytest.mark.parametrize(
    ("epsilon", "delta", "message"),
    [
        (0.0, 1e-6, "total_epsilon must be positive and finite, not 0.0"),
        (-1.0, 1e-6, "total_epsilon must be positive and finite, not -1.0"),
        (math.inf, 1e-6, "total_epsilon must be positive and finite, not inf"),
        (math.nan, 1e-6, "total_epsilon must be positive and finite, not nan"),
        (1.0, 0.0, r"total_delta must be in \(0, 1\), not 0.0"),
        (1.0, 1.0, r"total_delta must be in \(0, 1\), not 1.0"),
    ],
)
def test_an_impossible_budget_is_refused(epsilon, delta, message):
    with pytest.raises(ValueError, match=message):
        budget.Budget(epsilon, delta)


@pytest.mark.parametrize("shares", [{}, {"a": 0.5}, {"a": 0.5, "b": 0.6}, {"a": 1.5, "b": -0.5}, {"a": math.nan}])
def test_shares_that_do_not_add_up_are_refused(shares):
    with pytest.raises(ValueError, match="shares must be positive and add up to 1"):
        budget.noise_multipliers(budget.Budget(1.0, 1e-6), shares)


@pytest.mark.parametrize("selection_delta", [-1e-7, 1e-6])
def test_selection_may_not_spend_the_whole_delta(selection_delta):
    with pytest.raises(ValueError, match="selection_delta"):
        budget.noise_multipliers(budget.Budget(1.0, 1e-6), SHARES, selection_delta)


def test_noise_scales_with_the_sensitivity():
    assert budget.Mechanism("counts.events", 5.0, l2_sensitivity=3.0).noise_sd == 15.0
