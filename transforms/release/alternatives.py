"""What other mechanisms would do for the same budget: noise of counts, and private choice of the items that may appear.

Nothing here draws noise or touches a release: widths and probabilities by formula, calibrated by dp_accounting and PipelineDP,
to compare with what `counts` and `selection` do.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pipeline_dp
import scipy.sparse as sp
from dp_accounting import gaussian_mechanism
from dp_accounting.pld import privacy_loss_distribution
from pipeline_dp import dp_computations, partition_selection
from scipy import optimize, stats

from transforms.privacy import budget, noise
from transforms.release import selection

BOUNDS = (1, 3, 10, 30, 100, 300)
"""Items of one user that count, each of which a strategy may take: a large bound is more noise, a small one fewer users."""

_STEPS = 500
"""Of the privacy loss in epsilon, for all coordinates together: errs by about a thousandth, to the safe side."""


class Noise(NamedTuple):
    """A mechanism for counts of users: standard deviation and half the width of the 95 % interval of one count."""

    name: str
    sd: float
    half_width: float


class Choice(NamedTuple):
    """A strategy for private partition selection: the bound that suits it best, and how many items it shows on average."""

    name: str
    max_partitions_contributed: int
    expected_items: float


def count_noise(total: budget.Budget, max_partitions_contributed: int) -> list[Noise]:
    """Compares mechanisms for the number of users of each partition, the whole budget spent on it.

    Args:
        total: what all counts together may cost.
        max_partitions_contributed: L0: a user changes so many counts by 1.
    """
    l0, epsilon, delta = max_partitions_contributed, total.total_epsilon, total.total_delta
    gaussian = gaussian_mechanism.get_sigma_gaussian(epsilon, delta) * math.sqrt(l0)
    laplace = dp_computations.LaplaceMechanism.create_from_epsilon(epsilon, float(l0))
    discrete = _discrete_gaussian(total, l0)
    return [
        Noise("Gaussian (ours)", gaussian, noise.Z95 * gaussian),
        Noise("discrete Gaussian", discrete, noise.Z95 * discrete),
        Noise("Laplace", laplace.std, float(stats.laplace.ppf(0.975)) * laplace.noise_parameter),
    ]


def _discrete_gaussian(total: budget.Budget, l0: int) -> float:
    """Least sigma of independent discrete Gaussians (Canonne, Kamath and Steinke 2020) on L0 counts, by their PLDs."""
    guess = gaussian_mechanism.get_sigma_gaussian(total.total_epsilon, total.total_delta) * math.sqrt(l0)

    def excess(sigma: float) -> float:
        one = privacy_loss_distribution.from_discrete_gaussian_mechanism(
            sigma, sensitivity=1, value_discretization_interval=total.total_epsilon / l0 / _STEPS
        )
        return one.self_compose(l0).get_epsilon_for_delta(total.total_delta) - total.total_epsilon

    # Below a standard deviation of about 1 the grid shows.
    return float(optimize.brentq(excess, 0.5 * guess, 1.5 * guess + 1, rtol=1e-4))


def partition_selection_choices(total: budget.Budget, rows: sp.csr_matrix, weight: float = 1.0) -> list[Choice]:
    """Compares strategies for items that no catalogue names, the whole budget spent on them: the best bound of each.

    Args:
        total: what the selection may cost.
        rows: (n_users, n_items), an item is a user's when its entry is stored.
        weight: how many users each row stands for.
    """
    strategies: Mapping[str, Callable[[int], np.ndarray]] = {
        "weighted Gaussian (ours)": lambda bound: _ours(total, rows, weight, bound),
        **{
            name: lambda bound, strategy=strategy: _theirs(strategy, total, rows, weight, bound)  # type: ignore[misc]
            for name, strategy in (
                ("truncated geometric", pipeline_dp.PartitionSelectionStrategy.TRUNCATED_GEOMETRIC),
                ("Laplace thresholding", pipeline_dp.PartitionSelectionStrategy.LAPLACE_THRESHOLDING),
                ("Gaussian thresholding", pipeline_dp.PartitionSelectionStrategy.GAUSSIAN_THRESHOLDING),
            )
        },
    }
    return [_best(name, shown, BOUNDS) for name, shown in strategies.items()]


def _best(name: str, shown: Callable[[int], np.ndarray], bounds: Sequence[int]) -> Choice:
    expected = [float(shown(bound).sum()) for bound in bounds]
    best = int(np.argmax(expected))
    return Choice(name, bounds[best], expected[best])


def _ours(total: budget.Budget, rows: sp.csr_matrix, weight: float, bound: int) -> np.ndarray:
    """Probability that each item's noisy score passes `selection.threshold`; half of delta is the threshold's."""
    delta = total.total_delta / 2
    sigma = gaussian_mechanism.get_sigma_gaussian(total.total_epsilon, delta)
    scores = weight * _expected(rows, bound, lambda sizes: 1 / np.sqrt(np.minimum(sizes, bound)))
    limit = selection.threshold(sigma, delta, bound)
    # What nobody has isn't there to be shown.
    return np.where(scores > 0, stats.norm.sf((limit - scores) / sigma), 0.0)


def _theirs(
    strategy: pipeline_dp.PartitionSelectionStrategy, total: budget.Budget, rows: sp.csr_matrix, weight: float, bound: int
) -> np.ndarray:
    """Probability that PipelineDP keeps each item, by its expected number of users under the bound."""
    made = partition_selection.create_partition_selection_strategy(strategy, total.total_epsilon, total.total_delta, bound)
    users = np.rint(weight * _expected(rows, bound, np.ones_like)).astype(int)
    of_number = {number: made.probability_of_keep(number) for number in np.unique(users).tolist()}
    return np.array([of_number[number] for number in users.tolist()])


def _expected(rows: sp.csr_matrix, bound: int, worth: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """What each item gets on average when a random `bound` of a user's items count, each for `worth` of their number."""
    sizes = np.maximum(np.diff(rows.indptr), 1).astype(np.float64)
    given = np.minimum(1, bound / sizes) * worth(sizes)
    return np.bincount(rows.indices, np.repeat(given, np.diff(rows.indptr)), minlength=rows.shape[1])
