"""A synthetic world fitted to released figures alone: simulated users, to try settings on at no cost to anybody's budget.

Each user has a number of items, log-normal, and picks as many without replacement from a Plackett-Luce model (Gumbel top-k:
Kool et al. 2019) with

    logit(user, item) = popularity(item) + <taste(user), taste(item)>,    taste(user) ~ N(0, I).

What the release says fixes the means: its noisy scores the popularity, its noisy matrix tastes and lengths. What noise hides is
made up: tastes of items that stand out of the noise tell how strong those of the others are, and the public features where they
point. Last, popularity and the strength of tastes are calibrated by simulation (indirect inference: Gourieroux, Monfort and
Renault 1993): the fitted world, released with the same noise, must have the scores and the spectrum that were released.

Reads noisy aggregates and public features, never events: post-processing.
"""

import dataclasses
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp

from models import denoise, hybrid

HEAD_SIGNAL = 3.0
"""Scores of so many standard deviations of their noise are taken as they are; below, a power law goes on from there."""
MAX_RANK = 32
"""Most dimensions of a taste."""
MAX_LIFT = 30.0
"""How much more (or less) often two items may meet than by popularity alone: beyond, it is noise on rare items."""
MAX_SHARE = 0.25
"""Of all items, the most that one user has."""
ROUNDS = 16
"""Of the calibration: what is left to mend is then a percent or so."""
CALIBRATION_USERS = 10_000
"""Simulated in each round."""

MAX_VARIANCE = 4.0
"""Of the logarithm of a user's number of items."""

_CHUNK_USERS = 1_000
_LEAST = 1e-3
_RARE = 1e-6
"""Added to shares of scores, so that an item that no simulated user has can still come."""


class Figures(NamedTuple):
    """What a release says of n items, m of which are in its matrix.

    Attributes:
        scores: (n,), noisy sums over users of 1 / sqrt(number of the user's items).
        score_sd: of their noise.
        known: (m,), the rows in `scores` of the items that `matrix` is of.
        matrix: (m, m), noisy sums of outer products of users' rows of norm 1.
        noise_sd: of `matrix` off its diagonal.
        features: (n, f), public; no columns: none are known.
        weights: what a user's items weigh, and the share of the items that each weight has.
        expected_users: a public figure, for a matrix that says nothing of how many there are.
    """

    scores: np.ndarray
    score_sd: float
    known: np.ndarray
    matrix: np.ndarray
    noise_sd: float
    features: sp.csr_matrix
    weights: tuple[tuple[float, float], ...]
    expected_users: int


@dataclasses.dataclass(frozen=True)
class World:
    """Users who pick items.

    Attributes:
        users: how many the release had, by its own noisy figures.
        popularity: (n,), log odds.
        tastes: (n, d).
        log_length: mean and standard deviation of the logarithm of a user's number of items.
        weights: see Figures.
    """

    users: int
    popularity: np.ndarray
    tastes: np.ndarray
    log_length: tuple[float, float]
    weights: tuple[tuple[float, float], ...] = ((1.0, 1.0),)

    def draw(self, users: int, seed: int) -> sp.csr_matrix:
        """Returns so many users' weights of their items, float32 (users, n); the same for a seed."""
        parts = [self._chunk(seed, chunk) for chunk in range(-(-users // _CHUNK_USERS))]
        return sp.vstack(parts, format="csr")[:users]

    def _chunk(self, seed: int, chunk: int) -> sp.csr_matrix:
        rng, n = np.random.default_rng([seed, chunk]), len(self.popularity)
        length = np.exp(rng.normal(*self.log_length, _CHUNK_USERS))
        length = np.clip(np.rint(length), 1, max(1, n * MAX_SHARE)).astype(np.int64)
        taste = rng.standard_normal((_CHUNK_USERS, self.tastes.shape[1]), np.float32)
        keys = taste @ self.tastes.T.astype(np.float32) + self.popularity.astype(np.float32)
        keys -= np.log(rng.standard_exponential(keys.shape, np.float32) + np.float32(1e-8))
        lowest = np.sort(keys, axis=1)[np.arange(_CHUNK_USERS), n - length]
        rows = sp.csr_matrix(keys >= lowest[:, None], dtype=np.float32)
        values, shares = np.array(self.weights).T
        rows.data = rng.choice(values, rows.nnz, p=shares / shares.sum()).astype(np.float32)
        return rows


def fit(figures: Figures, seed: int = 0) -> World:
    """Returns the world that a release's figures speak of.

    Args:
        figures: see Figures.
        seed: of what is made up, and of the users of the calibration.

    Raises:
        ValueError: there is nothing to fit: no item in the matrix, or no score that stands out of the noise.
    """
    scores = smooth_scores(figures.scores, figures.score_sd)
    if not len(figures.known) or not scores.any():
        raise ValueError("fit: the release has no item that stands out of its noise.")
    users = count_users(figures)
    spectrum = denoise.denoise(figures.matrix, figures.noise_sd, MAX_RANK)
    tastes = _tastes(figures, scores, spectrum, np.random.default_rng([seed, 1]))
    start = World(users, np.log(scores / scores.max()), tastes, log_length(figures, users), figures.weights)
    return _calibrate(start, figures, scores, _beyond_popularity(spectrum), seed)


def count_users(figures: Figures) -> int:
    """Returns how many users the release had: each one's row of norm 1 adds 1 to the trace. Public, if noise hides it."""
    trace, noise = float(np.trace(figures.matrix)), figures.noise_sd * np.sqrt(2 * len(figures.matrix))
    return round(trace) if trace > 5 * noise else figures.expected_users


def log_length(figures: Figures, users: int) -> tuple[float, float]:
    """Returns mean and standard deviation of the logarithm of a user's number of items t.

    The scores add up to the sum over users of sqrt(t); all cells of the matrix to the sum of t, of kept items, where all weigh
    the same. No bound but that of the selection is in either, and the noise of both sums is small. A log-normal is fitted to
    the two means.
    """
    total = max(float(figures.scores.sum()), users * 1.0)
    kept = min(1.0, max(_LEAST, float(figures.scores[figures.known].sum()) / total))
    root = total / users
    values, shares = np.array(figures.weights).T
    evenness = float(values @ shares) ** 2 / float(values**2 @ shares) / float(shares.sum())
    mean = float(figures.matrix.sum()) / users / kept / evenness
    variance = 4 * (np.log(max(mean, root**2)) - 2 * np.log(root))
    variance = float(np.clip(variance, 0.0, MAX_VARIANCE))
    return 2 * float(np.log(root)) - variance / 4, variance**0.5


def smooth_scores(scores: np.ndarray, noise_sd: float) -> np.ndarray:
    """Returns scores without noise, positive, in the order of the noisy ones, (n,); zeros where none stands out.

    Those below HEAD_SIGNAL standard deviations follow a power law of their rank that begins at the last one above, and has
    their sum, of which the noise is small.
    """
    order = np.argsort(-scores, kind="stable")
    ranked = np.maximum(scores[order], 0).astype(np.float64)
    head = int(np.searchsorted(-ranked, -HEAD_SIGNAL * noise_sd))
    if head and head < len(ranked):
        ratio = np.arange(head + 1, len(ranked) + 1) / head
        ranked[head:] = ranked[head - 1] * ratio ** -_power(ratio, float(scores[order][head:].sum()) / ranked[head - 1])
    elif not head:
        ranked[:] = 0
    smooth = np.empty(len(ranked))
    smooth[order] = ranked
    return smooth


def _power(ratio: np.ndarray, total: float) -> float:
    """The power a at which the sum of ratio^-a is `total`, in 0 .. 20."""
    low, high = 0.0, 20.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if (ratio**-middle).sum() > total else (low, middle)
    return middle


def _tastes(figures: Figures, scores: np.ndarray, spectrum: denoise.Spectrum, rng: np.random.Generator) -> np.ndarray:
    """Tastes of all items, (n, d): what stands out of the noise, what features say, and the rest made up."""
    known, popularity = figures.known, scores[figures.known]
    seen = _seen_tastes(spectrum, popularity)
    features = figures.features
    tastes = features @ hybrid.ridge(features[known], seen) if features.shape[1] else np.zeros((len(scores), seen.shape[1]))
    tastes[known] = seen
    # The most popular third of the kept items have the least noise.
    clear = seen[popularity >= np.quantile(popularity, 2 / 3)]
    covariance = clear.T @ clear / len(clear)
    values, vectors = np.linalg.eigh(covariance)
    own = rng.standard_normal(tastes.shape) @ (vectors * np.sqrt(np.maximum(values, 0))).T
    missing = 1 - (tastes**2).sum(1) / max(np.trace(covariance), _LEAST)
    return tastes + np.sqrt(np.clip(missing, 0, 1))[:, None] * own


def _seen_tastes(spectrum: denoise.Spectrum, popularity: np.ndarray) -> np.ndarray:
    """Tastes of kept items, (m, d): with log-normal intensities, their inner products are the logarithms of the lifts."""
    signal = np.maximum(spectrum.matrix(), 0)
    by_chance = np.outer(popularity, popularity)
    lift = signal / by_chance * (by_chance.sum() / max(signal.sum(), _LEAST))
    logs = np.log(np.clip(lift, 1 / MAX_LIFT, MAX_LIFT))
    weight = popularity / popularity.sum()
    # What a row has in common is popularity, which is calibrated apart.
    means = logs @ weight
    logs -= means[:, None] + means - weight @ means
    root = np.sqrt(weight * len(weight))
    found = denoise.largest(logs * np.outer(root, root), max(1, len(spectrum.values) - 1))
    return found.vectors * np.sqrt(found.values) / root[:, None]


def _calibrate(world: World, figures: Figures, scores: np.ndarray, strength: float, seed: int) -> World:
    """The world whose own release has these scores, lengths and this much of taste in its spectrum."""
    users = min(world.users, CALIBRATION_USERS)
    scale = users / world.users
    roots, cells = float(figures.scores.sum()) * scale, float(figures.matrix.sum()) * scale
    noise_sd = figures.noise_sd * scale
    upper = np.triu(np.random.default_rng([seed, 2]).normal(0, noise_sd, figures.matrix.shape), 1)
    for number in range(ROUNDS):
        step = 1 / (1 + number / 6)
        rows = world.draw(users, seed + 1)
        drawn, matrix = _scores(rows), _cooccurrence(rows, figures.known)
        spectrum = denoise.denoise(matrix + upper + upper.T, noise_sd, MAX_RANK)
        too_weak = strength * scale / max(_beyond_popularity(spectrum), _LEAST)
        too_rare = (scores / scores.sum() + _RARE) / (drawn / drawn.sum() + _RARE)
        # The more users have an item, the less one more in its log odds adds to them.
        open_share = np.maximum(1 - np.bincount(rows.indices, minlength=len(scores)) / users, 0.1)
        too_short = np.log(roots / drawn.sum())
        too_even = np.log(cells / max(matrix.sum(), 1.0)) - 2 * too_short
        mean, sd = world.log_length
        variance = float(np.clip(sd**2 + step * 4 * too_even, 0.0, MAX_VARIANCE))
        world = World(
            world.users,
            world.popularity + step * np.log(too_rare) / open_share,
            world.tastes * np.clip(too_weak, 0.5, 2) ** step,
            # As in `log_length`: what the wider spread adds to the mean square root is taken off the mean.
            (float(mean + step * 2 * too_short - (variance - sd**2) / 4), variance**0.5),
            world.weights,
        )
    return world


def _scores(rows: sp.csr_matrix) -> np.ndarray:
    sizes = np.maximum(np.diff(rows.indptr), 1)
    return np.bincount(rows.indices, np.repeat(1 / np.sqrt(sizes), np.diff(rows.indptr)), minlength=rows.shape[1])


def _cooccurrence(rows: sp.csr_matrix, known: np.ndarray) -> np.ndarray:
    part = rows[:, known]
    squares = np.asarray(part.multiply(part).sum(1)).ravel()
    return (part.T @ sp.diags(1 / np.maximum(squares, _LEAST)) @ part).toarray()


def _beyond_popularity(spectrum: denoise.Spectrum) -> float:
    """Weight of all eigenpairs but the first, which is popularity."""
    return float(spectrum.values[1:].sum())
