"""Privacy filters: what a contract holds, in the currency in which releases that were chosen adaptively add up.

A filter is asked before each release and refuses the first that would go beyond the total; then the whole sequence is
(epsilon, delta)-differentially private, though each release may be chosen from the results of those before.

`gaussian`: releases are Gaussian, and 1/sigma^2 adds up to at most mu^2, for the mu whose Gaussian is (epsilon, delta)-DP: the
Gaussian-DP filter (Smith and Thakurta 2022, "Fully adaptive composition for Gaussian differential privacy", theorem 1;
Koskela, Tobaben and Honkela 2022 for users who spend individually). `zcdp`: any mechanism with a zCDP bound, whose rhos add up
(Feldman and Zrnic 2021, "Individual privacy accounting via a Renyi filter"). What a release may spend on showing partitions
that only one user has is a delta beside either, and adds up by itself.
"""

import math
from collections.abc import Iterable
from typing import Literal

import numpy as np
from dp_accounting import gaussian_mechanism

Composition = Literal["gaussian", "zcdp"]


def capacity(composition: Composition, epsilon: float, delta: float) -> float:
    """How much a contract of (epsilon, delta) holds: mu^2 for `gaussian`, rho for `zcdp`. Delta without selection's part."""
    if composition == "gaussian":
        return gaussian_mechanism.get_sigma_gaussian(epsilon, delta) ** -2
    low, high = 0.0, epsilon
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if _zcdp_epsilon(middle, delta) <= epsilon else (low, middle)
    return low


def gaussian_cost(composition: Composition, noise_multiplier: float) -> float:
    """What a Gaussian mechanism spends: 1/sigma^2, or rho = 1 / (2 sigma^2) (Bun and Steinke 2016, proposition 1.6)."""
    return noise_multiplier**-2 if composition == "gaussian" else noise_multiplier**-2 / 2


def total_cost(composition: Composition, noise_multipliers: Iterable[float]) -> float:
    """What several Gaussian mechanisms spend together."""
    return math.fsum(gaussian_cost(composition, noise_multiplier) for noise_multiplier in noise_multipliers)


def pure_cost(composition: Composition, epsilon: float) -> float:
    """What an (epsilon, 0)-DP mechanism such as Laplace's spends: rho = epsilon^2 / 2 (Bun and Steinke 2016, proposition 1.4).

    Raises:
        ValueError: the contract admits Gaussians alone.
    """
    if composition == "gaussian":
        raise ValueError('a contract with composition = "gaussian" admits Gaussian mechanisms alone; "zcdp" admits others too.')
    return epsilon**2 / 2


def spent_epsilon(composition: Composition, spent: float, delta: float) -> float:
    """The epsilon at `delta` of all that was spent together."""
    if spent <= 0:
        return 0.0
    if composition == "gaussian":
        return gaussian_mechanism.get_epsilon_gaussian(spent**-0.5, delta)
    return _zcdp_epsilon(spent, delta)


def _zcdp_epsilon(rho: float, delta: float) -> float:
    """The least epsilon of rho-zCDP at delta over the orders alpha (Canonne, Kamath and Steinke 2020, corollary 13)."""
    if rho <= 0:
        return 0.0
    alpha = 1 + np.geomspace(1e-3, 1e6, 20_000)
    log_delta = math.log(delta)
    # delta = exp((alpha - 1) (alpha rho - epsilon)) / alpha * (1 - 1/alpha)^(alpha - 1), solved for epsilon.
    epsilon = alpha * rho - (log_delta + np.log(alpha)) / (alpha - 1) + np.log1p(-1 / alpha)
    return max(0.0, float(np.min(epsilon)))
