"""What other mechanisms would do: against formulas that are told elsewhere."""

import math

import numpy as np
import pytest
import scipy.sparse as sp
from dp_accounting import gaussian_mechanism

from transforms.privacy import budget
from transforms.release import alternatives

TOTAL = budget.Budget(1.0, 1e-6)


@pytest.mark.parametrize("l0", [1, 20])
def test_noise_of_counts(l0):
    ours, discrete, laplace = alternatives.count_noise(TOTAL, l0)
    assert ours.sd == pytest.approx(gaussian_mechanism.get_sigma_gaussian(1.0, 1e-6) * math.sqrt(l0))
    assert ours.half_width == pytest.approx(1.96 * ours.sd, rel=1e-4)
    # Of a large standard deviation the grid of whole numbers is hardly to be seen; its PLD errs to the safe side.
    assert 0.999 < discrete.sd / ours.sd < 1.01
    assert laplace.sd == pytest.approx(math.sqrt(2) * l0)
    assert laplace.half_width == pytest.approx(math.log(20) * l0)


def test_laplace_is_better_for_a_single_count_and_worse_for_many():
    sd = {l0: {each.name: each.sd for each in alternatives.count_noise(TOTAL, l0)} for l0 in (1, 50)}
    assert sd[1]["Laplace"] < sd[1]["Gaussian (ours)"]
    assert sd[50]["Laplace"] > 2 * sd[50]["Gaussian (ours)"]


def test_items_that_many_have_are_shown_and_those_of_one_are_not():
    rows = sp.csr_matrix(np.column_stack([np.ones((500, 2)), np.eye(500)[:, :3]]))
    for choice in alternatives.partition_selection_choices(TOTAL, rows):
        assert choice.expected_items == pytest.approx(2, abs=0.01), choice


def test_few_items_of_many_a_user_are_what_weights_are_for():
    rng = np.random.default_rng(0)
    rows = sp.csr_matrix(rng.random((3000, 400)) < np.linspace(0.3, 0.0, 400))
    found = {each.name: each.expected_items for each in alternatives.partition_selection_choices(TOTAL, rows)}
    assert max(found, key=lambda name: found[name]) == "weighted Gaussian (ours)"
    halved = alternatives.partition_selection_choices(TOTAL, rows[:1500], weight=2.0)
    assert halved[0].expected_items == pytest.approx(found["weighted Gaussian (ours)"], rel=0.05)
