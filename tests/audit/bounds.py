"""What runs with and without a user say of the loss: lower bounds that hold with a chosen probability.

Error rates are counted on runs of their own, at thresholds that were fixed before, and bounded by Clopper and Pearson (1934).
"""

from typing import NamedTuple

import numpy as np
from dp_accounting import gaussian_mechanism
from scipy import stats

REPORTED = 0.05
"""How often one of all bounds of a table may be too high, by Bonferroni."""
ALARM = 1e-6
"""How often a bound that raises an alarm may be too high: what a test may fail by chance."""


def upper(hits: int, runs: int, error: float) -> float:
    """The probability that is at least that of a hit, but for an error."""
    return 1.0 if hits == runs else float(stats.beta.isf(error, hits + 1, runs - hits))


def lower(hits: int, runs: int, error: float) -> float:
    """The probability that is at most that of a hit, but for an error."""
    return 1.0 - upper(runs - hits, runs, error)


class Sample(NamedTuple):
    """A statistic of the released vector, (n_runs,) each: of runs without the user, and with it."""

    without: np.ndarray
    joined: np.ndarray


def middle(pilot: Sample) -> float:
    """Where to cut: for two Gaussians of one width the cut halfway tells most. From runs that count for nothing else."""
    return float(np.median(pilot.without) + np.median(pilot.joined)) / 2


def mu(sample: Sample, cut: float, error: float) -> float:
    """A lower bound on the mu of Gaussian differential privacy, from both error rates of telling the two apart at a cut.

    mu-GDP lets no test have error rates below Phi(Phi^-1(1 - alpha) - mu) (Dong, Roth and Su 2022, definition 2.6), so mu is
    at least Phi^-1(1 - alpha) - Phi^-1(beta). (Nasr et al. 2023, "Tight auditing of differentially private machine learning":
    audits by this curve are tight for Gaussians where those by one (epsilon, delta) aren't. jax_privacy's
    CanaryScoreAuditor.epsilon_from_gdp does the same, at every threshold at once.)
    """
    alpha = upper(int(np.sum(sample.without > cut)), len(sample.without), error / 2)
    beta = upper(int(np.sum(sample.joined <= cut)), len(sample.joined), error / 2)
    return max(0.0, float(stats.norm.isf(alpha) - stats.norm.ppf(beta)))


def epsilon_of(mu: float, delta: float) -> float:
    """The epsilon at delta of a Gaussian mechanism of sensitivity 1 and noise 1/mu (Balle and Wang 2018)."""
    return float(gaussian_mechanism.get_epsilon_gaussian(1 / mu, delta)) if mu > 0 else 0.0


def cut_for(pilot: Sample, delta: float) -> tuple[float, bool]:
    """Where to cut, and whether to look at what is above: the event with the largest loss at delta in pilot runs."""
    found = []
    for value in np.unique(np.quantile(np.r_[pilot.without, pilot.joined], np.linspace(0.01, 0.99, 99), method="nearest")):
        found += [
            (epsilon(pilot, (float(value), is_above), delta, REPORTED), float(value), is_above) for is_above in (True, False)
        ]
    _, value, is_above = max(found)
    return value, is_above


def epsilon(sample: Sample, event: tuple[float, bool], delta: float, error: float) -> float:
    """A lower bound on epsilon at delta, by how often an event happens with the user and without it, either way round.

    The hockey-stick divergence between the two is at least P(event) - e^epsilon Q(event) for any event, and at most delta
    (Kong et al. 2023, "DP-Auditorium": there too the event is found on samples of their own and then tried on others).
    """
    value, is_above = event
    hits = [int(np.sum(runs > value if is_above else runs <= value)) for runs in sample]
    found = 0.0
    for (more, of_more), (less, of_less) in (((hits[0], 0), (hits[1], 1)), ((hits[1], 1), (hits[0], 0))):
        least = lower(more, len(sample[of_more]), error / 4) - delta
        if least > 0:
            found = max(found, float(np.log(least / upper(less, len(sample[of_less]), error / 4))))
    return found
