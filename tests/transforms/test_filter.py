"""What a contract holds, against dp_accounting's accountants."""

import dp_accounting
import numpy as np
import pytest
from dp_accounting import pld, rdp

from transforms.privacy import filter as privacy_filter

TARGETS = [(0.1, 1e-9), (1.0, 1e-6), (4.0, 1e-5)]
ORDERS = 1 + np.geomspace(1e-2, 1e6, 20_000)
EACH_COMPOSITION = pytest.mark.parametrize("composition", ["gaussian", "zcdp"])


@pytest.mark.parametrize(("epsilon", "delta"), TARGETS)
@pytest.mark.parametrize("shares", [[1.0], [0.5, 0.5], [0.1, 0.2, 0.3, 0.4], [0.9] + [0.01] * 10])
def test_gaussians_that_fill_a_contract_have_its_epsilon_by_their_loss_distribution(epsilon, delta, shares):
    accountant = pld.PLDAccountant()
    for share in shares:
        cost = share * privacy_filter.capacity("gaussian", epsilon, delta)
        accountant.compose(dp_accounting.GaussianDpEvent(cost**-0.5))
    # It rounds losses up to multiples of 1e-4.
    assert accountant.get_epsilon(delta) == pytest.approx(epsilon, rel=1e-3)


@pytest.mark.parametrize(("epsilon", "delta"), TARGETS)
@pytest.mark.parametrize("shares", [[1.0], [0.1, 0.2, 0.3, 0.4]])
def test_gaussians_that_fill_a_zcdp_contract_have_its_epsilon_by_renyi_and_never_more(epsilon, delta, shares):
    accountant = rdp.RdpAccountant(ORDERS)
    for share in shares:
        cost = share * privacy_filter.capacity("zcdp", epsilon, delta)
        accountant.compose(dp_accounting.GaussianDpEvent((2 * cost) ** -0.5))
    # Both take the least over a grid of orders, not the same one.
    assert epsilon * (1 - 1e-5) <= accountant.get_epsilon(delta) <= epsilon * (1 + 1e-7)


@EACH_COMPOSITION
@pytest.mark.parametrize(("epsilon", "delta"), TARGETS)
def test_spending_all_that_a_contract_holds_spends_its_epsilon(composition, epsilon, delta):
    held = privacy_filter.capacity(composition, epsilon, delta)
    assert privacy_filter.spent_epsilon(composition, held, delta) == pytest.approx(epsilon, rel=1e-7)


@EACH_COMPOSITION
def test_nothing_spent_is_epsilon_zero_and_more_spent_is_more(composition):
    found = [privacy_filter.spent_epsilon(composition, spent, 1e-6) for spent in (0.0, 0.01, 0.1, 1.0)]
    assert found[0] == 0
    assert found == sorted(set(found))


@EACH_COMPOSITION
@pytest.mark.parametrize(("more", "less"), [((1.1, 1e-6), (1.0, 1e-6)), ((1.0, 1e-5), (1.0, 1e-6))], ids=["epsilon", "delta"])
def test_a_contract_of_more_holds_more(composition, more, less):
    assert privacy_filter.capacity(composition, *more) > privacy_filter.capacity(composition, *less)


@pytest.mark.parametrize(("epsilon", "delta"), TARGETS)
def test_zcdp_holds_fewer_releases_than_gaussian_for_the_same_totals(epsilon, delta):
    held = {
        name: privacy_filter.capacity(name, epsilon, delta) / privacy_filter.gaussian_cost(name, 10.0)
        for name in ("gaussian", "zcdp")
    }
    assert 0.5 * held["gaussian"] < held["zcdp"] < held["gaussian"]


@pytest.mark.parametrize(("composition", "cost"), [("gaussian", 0.25), ("zcdp", 0.125)])
def test_a_gaussian_costs_its_inverse_variance_or_half_of_it(composition, cost):
    assert privacy_filter.gaussian_cost(composition, 2.0) == cost


@pytest.mark.parametrize("epsilon", [0.1, 0.5, 2.0])
def test_a_laplace_costs_at_least_what_renyi_says(epsilon):
    accountant = rdp.RdpAccountant(ORDERS).compose(dp_accounting.LaplaceDpEvent(1 / epsilon), 50)
    cost = privacy_filter.pure_cost("zcdp", epsilon)
    assert cost == epsilon**2 / 2
    assert accountant.get_epsilon(1e-6) <= privacy_filter.spent_epsilon("zcdp", 50 * cost, 1e-6)


def test_a_gaussian_contract_refuses_a_pure_mechanism():
    with pytest.raises(ValueError, match="admits Gaussian mechanisms alone"):
        privacy_filter.pure_cost("gaussian", 0.5)
