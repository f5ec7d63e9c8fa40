"""What guesses about who is in the data say of a guarantee: lower bounds on epsilon, and how well an attacker may do at most.

Canaries are users that an auditor adds, each on the toss of a fair coin; an attacker who sees what was released then guesses
the coins, and may abstain (Steinke, Nasr and Jagielski 2023, "Privacy auditing with one (1) training run"). More right guesses
than (epsilon, delta) allows show that the guarantee doesn't hold. Pure statistics: no event and no noise is here.
"""

import functools
import math

import numpy as np
from scipy import linalg, stats

from transforms.privacy import noise

_STEPS = 30
"""Of the bisection."""
MOST_CANARIES = 1 << 20
"""More are not tried."""


def p_value(canaries: int, guesses: int, correct: int, epsilon: float, delta: float) -> float:
    """How probable so many right guesses are at most, if the release is (epsilon, delta)-DP. (Steinke et al., theorem 5.2.)

    With q = e^epsilon / (1 + e^epsilon) and B ~ Binomial(guesses, q): P[B >= correct] + 2 * canaries * delta * alpha,
    alpha = max over i >= 1 of P[correct > B >= correct - i] / i.

    Args:
        canaries: how many coins were tossed.
        guesses: how many were guessed: a number fixed beforehand, or a most.
        correct: how many of them rightly.
        epsilon, delta: of the guarantee.

    Raises:
        ValueError: not 0 <= correct <= guesses <= canaries, or an epsilon or delta that no guarantee has.
    """
    if not 0 <= correct <= guesses <= canaries:
        raise ValueError(f"p_value: must have 0 <= correct <= guesses <= canaries, not {correct}, {guesses}, {canaries}.")
    if epsilon < 0 or not 0 <= delta <= 1:
        raise ValueError(f"p_value: epsilon must not be negative and delta in [0, 1], not {epsilon}, {delta}.")
    right = stats.binom(guesses, 1 / (1 + math.exp(-epsilon)))
    found = float(right.sf(correct - 1))
    if delta and correct:
        below = np.cumsum(right.pmf(np.arange(correct - 1, -1, -1)))
        found += 2 * canaries * delta * float(np.max(below / np.arange(1, correct + 1)))
    return min(found, 1.0)


def epsilon_lower_bound(canaries: int, guesses: int, correct: int, delta: float, significance: float = 0.05) -> float:
    """The largest epsilon that the guesses reject at `significance`; 0 where they reject none. Arguments as `p_value`."""

    def rejects(epsilon: float) -> bool:
        return p_value(canaries, guesses, correct, epsilon, delta) < significance

    if not rejects(0.0):
        return 0.0
    low, high = 0.0, 1.0
    while rejects(high):
        low, high = high, 2 * high
    for _ in range(_STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if rejects(middle) else (low, middle)
    return low


def canaries_needed(epsilon: float, delta: float, significance: float = 0.05) -> int:
    """The least number of canaries of which right guesses alone exceed `epsilon`: with fewer nothing could be shown.

    Raises:
        ValueError: MOST_CANARIES are too few.
    """
    low, high = 0, 1
    while p_value(high, high, high, epsilon, delta) >= significance:
        low, high = high, 2 * high
        if high > MOST_CANARIES:
            raise ValueError(f"{MOST_CANARIES} right guesses don't exceed epsilon = {epsilon:g} at delta = {delta:g}.")
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if p_value(middle, middle, middle, epsilon, delta) >= significance else (low, middle)
    return high


@functools.cache
def best_guesses(canaries: int, mu: float, delta: float, significance: float = 0.05) -> tuple[int, float]:
    """How many guesses promise the largest bound where the release is a Gaussian mechanism of 1/sigma = `mu`; and that bound.

    By the claim alone, so that it is fixed before anything is released. Guessing the clearest few is safer, guessing more
    counts more. The bound is what typical guesses show where no canary is like another: a most that one may hope for.
    """
    best, most = 1, 0.0
    # |log odds / mu| above t: the score is N(mu/2, 1) for who is in and N(-mu/2, 1) for who isn't.
    for t in np.linspace(0, mu / 2 + 3, 24):
        right, wrong = stats.norm.cdf(mu / 2 - t), stats.norm.cdf(-mu / 2 - t)
        guesses = math.floor(canaries * (right + wrong))
        if not guesses:
            break
        bound = epsilon_lower_bound(canaries, guesses, math.floor(guesses * right / (right + wrong)), delta, significance)
        if bound > most:
            best, most = guesses, bound
    return best, most


def correct_guesses(scores: np.ndarray, included: np.ndarray, guesses: int) -> int:
    """How many guesses are right: the clearest scores are guessed, in where they are positive, and out where not.

    Args:
        scores: (n,), of the canaries.
        included: (n,), bool: the coins.
        guesses: at most n.
    """
    clearest = np.argsort(-np.abs(scores), kind="stable")[:guesses]
    return int(((scores > 0) == included)[clearest].sum())


def decode(products: np.ndarray, gram: np.ndarray) -> np.ndarray:
    """The best linear guess of each canary's coin less a half, (m,): what others like it add is told apart.

    With T the canaries' terms as rows, what was released less all that is known of it is y = T^T (coins - 1/2) and noise of
    standard deviation 1 (scaled to that); the coins have variance 1/4, so the guess is (T T^T + 4)^-1 T y.

    Args:
        products: (m,), T y.
        gram: (m, m), T T^T.
    """
    return np.asarray(linalg.solve(gram + 4 * np.eye(len(gram)), products, assume_a="pos"))


def auc(inside: np.ndarray, outside: np.ndarray) -> tuple[float, float, float]:
    """The probability that who is in scores higher than who isn't, ties counting half, and its 95 % interval.

    The interval is DeLong's (DeLong, DeLong and Clarke-Pearson 1988), cut to [0, 1].

    Args:
        inside, outside: (n,), (m,): the scores of who is in and who isn't.
    """
    ranks = stats.rankdata(np.r_[inside, outside])
    n, m = len(inside), len(outside)
    # For each of one side, the share of the other side that it beats.
    beaten = (ranks[:n] - stats.rankdata(inside)) / m
    lost = 1 - (ranks[n:] - stats.rankdata(outside)) / n
    mean = float(beaten.mean())
    margin = noise.Z95 * math.sqrt(beaten.var(ddof=1) / n + lost.var(ddof=1) / m)
    return mean, max(0.0, mean - margin), min(1.0, mean + margin)


def largest_gaussian_auc(mu: float) -> float:
    """The most that any attacker can reach against a release that is mu-GDP: Phi(mu / sqrt(2))."""
    return float(stats.norm.cdf(mu / math.sqrt(2)))


def largest_auc(epsilon: float, delta: float) -> float:
    """The most that any attacker can reach against an (epsilon, delta)-DP release: the area under the region's bound.

    True positives are at most min(e^epsilon * x + delta, 1 - e^-epsilon * (1 - delta - x), 1) at false positives x (Kairouz, Oh
    and Viswanath 2015, "The composition theorem for differential privacy").
    """
    e = math.exp(epsilon)
    # Where the two lines cross, and where the second reaches 1.
    cross, end = (1 - delta) / (1 + e), 1 - delta
    height = e * cross + delta
    return (delta + height) / 2 * cross + (height + 1) / 2 * (end - cross) + delta
