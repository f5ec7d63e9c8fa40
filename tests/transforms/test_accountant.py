"""The noise that PipelineDP draws is the noise that is charged."""

import pipeline_dp
import pytest
from pipeline_dp import dp_computations

from transforms.privacy import accountant, budget

MECHANISM = pipeline_dp.aggregate_params.MechanismType.GAUSSIAN


@pytest.mark.parametrize("sigma", [0.5, 1.0, 5.0, 60.0])
def test_counting_mechanisms_get_the_planned_sigma_itself(sigma):
    accounting = accountant.PlannedAccountant(budget.Budget(1.0, 1e-6), {"Count": sigma})
    spec = accounting.request_budget(MECHANISM, name="Count")
    accounting.compute_budgets()
    mechanism = dp_computations.create_additive_mechanism(spec, dp_computations.Sensitivities(l0=4, linf=3))
    assert mechanism.std == sigma * 2 * 3


@pytest.mark.parametrize("sigma", [0.5, 1.0, 5.0, 60.0])
def test_the_pair_for_vector_sum_gives_the_planned_sigma_and_never_less(sigma):
    accounting = accountant.PlannedAccountant(budget.Budget(1.0, 1e-6), {"VectorSum": sigma})
    spec = accounting.request_budget(MECHANISM, name="VectorSum")
    accounting.compute_budgets()
    # PyDP looks for sigma by bisection, to 1e-3 from above.
    assert sigma * (1 - 1e-9) <= dp_computations.compute_sigma(spec.eps, spec.delta, 1.0) <= sigma * 1.001


def test_a_mechanism_that_was_not_planned_is_refused():
    accounting = accountant.PlannedAccountant(budget.Budget(1.0, 1e-6), {"Count": 1.0})
    accounting.request_budget(MECHANISM, name="Sum")
    with pytest.raises(KeyError, match="Sum"):
        accounting.compute_budgets()
