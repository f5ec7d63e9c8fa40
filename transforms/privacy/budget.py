"""From (total_epsilon, total_delta) to the noise of each mechanism.

All mechanisms of a release are Gaussian, so they compose exactly: mechanisms with noise multipliers sigma_i are together
as private as one Gaussian with 1/sigma^2 = sum 1/sigma_i^2 (Dong, Roth and Su 2022, Corollary 3.3, mu = 1/sigma). A share is
a share of that sum.
"""

import dataclasses
import math
from collections.abc import Mapping

from transforms.privacy import filter as privacy_filter

SELECTION = "selection"
COUNTS_USERS = "counts.users"
COUNTS_EVENTS = "counts.events"
COOCCURRENCE = "cooccurrence"
EVALUATION = "evaluation"


@dataclasses.dataclass(frozen=True)
class Mechanism:
    """One Gaussian mechanism as it is drawn and as it is charged.

    Attributes:
        name: the released vector it protects.
        noise_multiplier: sigma, the noise's standard deviation at L2 sensitivity 1.
        l2_sensitivity: of the released vector, in its own units, when one privacy id is added or removed.
        delta: set aside for showing partitions that only one user may have (0 with public partitions).
    """

    name: str
    noise_multiplier: float
    l2_sensitivity: float = 1.0
    delta: float = 0.0

    @property
    def noise_sd(self) -> float:
        """Standard deviation of the noise, in the units of the released vector."""
        return self.noise_multiplier * self.l2_sensitivity


@dataclasses.dataclass(frozen=True)
class Budget:
    """What one release may cost each privacy id."""

    total_epsilon: float
    total_delta: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.total_epsilon) and self.total_epsilon > 0):
            raise ValueError(f"Budget: total_epsilon must be positive and finite, not {self.total_epsilon}.")
        if not 0 < self.total_delta < 1:
            raise ValueError(f"Budget: total_delta must be in (0, 1), not {self.total_delta}.")


def noise_multipliers(
    budget: Budget,
    shares: Mapping[str, float],
    selection_delta: float = 0.0,
    composition: privacy_filter.Composition = "gaussian",
) -> dict[str, float]:
    """Splits a budget: the noise multiplier of each Gaussian mechanism, by its share of 1/sigma^2.

    Args:
        budget: of the whole release.
        shares: by mechanism, positive, adding up to 1.
        selection_delta: the part of total_delta that private partition selection spends beside its Gaussian.
        composition: the contract's, whose filter the release must pass.

    Raises:
        ValueError: shares that aren't positive or don't add up to 1, or a selection_delta outside [0, total_delta).
    """
    if not shares or any(not share > 0 for share in shares.values()) or abs(sum(shares.values()) - 1) > 1e-9:
        raise ValueError(f"noise_multipliers: shares must be positive and add up to 1, not {dict(shares)}.")
    if not 0 <= selection_delta < budget.total_delta:
        raise ValueError(
            f"noise_multipliers: selection_delta must be in [0, total_delta = {budget.total_delta}), not {selection_delta}."
        )
    # For "gaussian" the analytic Gaussian mechanism (Balle and Wang 2018, equation 6). Rounded up by a hair against the root
    # finder's own tolerance, and so that shares add up to less than the whole.
    capacity = privacy_filter.capacity(composition, budget.total_epsilon, budget.total_delta - selection_delta)
    sigma = math.sqrt(privacy_filter.gaussian_cost(composition, 1.0) / capacity)
    return {name: sigma * (1 + 1e-9) / math.sqrt(share) for name, share in shares.items()}
