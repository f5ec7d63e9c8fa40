"""PipelineDP draws the noise that our budget planned."""

from collections.abc import Mapping

import pipeline_dp
from dp_accounting import gaussian_mechanism

from transforms.privacy import budget

_PAIR_DELTA = 1e-12
"""Of the (epsilon, delta) that stands for a sigma: small enough that epsilon is positive for every sigma in use."""


class PlannedAccountant(pipeline_dp.NaiveBudgetAccountant):
    """Gives each of PipelineDP's mechanisms the noise multiplier planned for it, instead of splitting by weight.

    PipelineDP's own accountants compose naively over (epsilon, delta); `budget.noise_multipliers` composes Gaussians exactly.
    Mechanisms that take a standard deviation get it as it is; VECTOR_SUM takes (epsilon, delta) only, and gets the pair that
    has that standard deviation.

    Args:
        total: of the whole release.
        planned: noise multiplier by PipelineDP's name of the mechanism ("Count", "PrivacyIdCount", "VectorSum").
    """

    def __init__(self, total: budget.Budget, planned: Mapping[str, float]):
        super().__init__(total.total_epsilon, total.total_delta)
        self._planned = planned

    def compute_budgets(self) -> None:
        self._finalize()
        for spec in self.mechanism_specs:
            sigma = self._planned[spec.name]
            spec.set_eps_delta(gaussian_mechanism.get_epsilon_gaussian(sigma, _PAIR_DELTA), _PAIR_DELTA)
            spec.set_noise_standard_deviation(sigma)
