"""What Gaussian releases lose together, by an accountant that knows neither ledger nor filter."""

from collections.abc import Iterable

import dp_accounting
from dp_accounting import pld


def epsilon(noise_multipliers: Iterable[float], delta: float) -> float:
    """Their epsilon at delta by dp_accounting's privacy loss distributions, rounded up."""
    accountant = pld.PLDAccountant(value_discretization_interval=1e-3)
    for noise_multiplier in noise_multipliers:
        accountant.compose(dp_accounting.GaussianDpEvent(noise_multiplier))
    return accountant.get_epsilon(delta)
