"""How well models do on held-out users: noisy sums of per-user values in [0, 1], in one vector with the users' number."""

import dataclasses
import datetime as dt
import functools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import apache_beam as beam
import numpy as np
import pyarrow as pa
from scipy import stats

from data import ledger, tables
from transforms import bounding, spill
from transforms.privacy import budget, noise

GRID_BITS = 30
"""Values are exact multiples of 2^-30: room for 2^33 users."""
_MIDDLE = 0.5
"""Of [0, 1]: what is added up is how far a value is from it, so that one user's moves a sum by a half at most."""

_NOISE_ERROR, _USERS_ERROR, _RANGE_ERROR = 0.02, 0.005, 0.025
"""How often each part of an interval may fail: 5 % in all."""
_Z_NOISE = float(stats.norm.isf(_NOISE_ERROR / 2))
_Z_USERS = float(stats.norm.isf(_USERS_ERROR))

Measure = Callable[[int, pa.StringArray], np.ndarray | None]
"""One user, by the hash of `bounding.user_hash` and the items it has, in order of their names, each once: what is measured of
it, (n_values,); None: it isn't asked."""


def sensitivity(n_values: int) -> float:
    """L2 sensitivity of (number of users, sums of n_values values less a half): a user adds 1 and n_values halves at most."""
    return math.sqrt(1 + n_values * _MIDDLE**2)


def quantised(values: np.ndarray) -> np.ndarray:
    """What one user adds: 1, and each value, clipped to [0, 1] (NaN: 0), less a half, as multiples of 2^-30.

    int64 (1 + n_values,); rounded toward zero, so that its norm is at most `sensitivity` whatever the values are.
    """
    clipped = np.clip(np.nan_to_num(values, nan=0.0), 0.0, 1.0)
    return np.trunc(np.ldexp(np.r_[1.0, clipped - _MIDDLE], GRID_BITS)).astype(np.int64)


def exact_sums(rows: pa.Table, measure: Measure, n_values: int) -> np.ndarray:
    """Asks each user of a bucket's CONTRIBUTIONS by itself and adds up what they add, int64 (1 + n_values,).

    Raises:
        ValueError: the measure gives another number of values.
    """
    total = np.zeros(1 + n_values, np.int64)
    for user, items in bounding.items_of_users(rows):
        values = measure(user, items)
        if values is None:
            continue
        if values.shape != (n_values,):
            raise ValueError(f"ReleaseEvaluation: {n_values} values are measured of each user, not {values.shape}.")
        total += quantised(values)
    return total


def add_sums(parts: Iterable[np.ndarray], n_values: int) -> np.ndarray:
    """Adds up what `exact_sums` gives; nobody is a vector of zeros."""
    return np.sum([np.zeros(1 + n_values, np.int64), *parts], axis=0)


@dataclasses.dataclass(frozen=True)
class EvaluationParams:
    """What is measured, and how it is protected.

    Attributes:
        mechanism: of the whole vector; its L2 sensitivity is that of `sensitivity`.
        models: kind and version (None: it has none) of each.
        metrics: of each model; the values are by model, and by metric within.
        k: length of the lists.
        window_start, window_end: of the events.
    """

    mechanism: budget.Mechanism
    models: Sequence[tuple[str, int | None]]
    metrics: Sequence[str]
    k: int
    window_start: dt.datetime
    window_end: dt.datetime

    def __post_init__(self) -> None:
        if not math.isclose(self.mechanism.l2_sensitivity, sensitivity(self.n_values)):
            raise ValueError(
                f"EvaluationParams: {self.n_values} values have L2 sensitivity {sensitivity(self.n_values)}, not "
                f"{self.mechanism.l2_sensitivity}."
            )

    @property
    def n_values(self) -> int:
        """How many are measured of each user."""
        return len(self.models) * len(self.metrics)


class Estimate(NamedTuple):
    """A mean and its 95 % interval; value None, and all of [0, 1], where there are too few users for the noise."""

    value: float | None
    low: float
    high: float


def estimate(total: float, users: float, noise_sd: float) -> Estimate:
    """The mean of values in [0, 1] from noisy figures, with an interval for the mean of users of this kind.

    With S = the exact sum of values less a half, n the users, c = S / n in [-1/2, 1/2] and noise of standard deviation D on
    each: total - c * users is noise of standard deviation D * sqrt(1 + c^2) <= D * sqrt(5/4), so that, with probability 0.98,
    S / n is within z * D * sqrt(5/4) / users of total / users. With probability 0.995 n is at least m = users - z' * D, and
    then (Hoeffding 1963, theorem 1: values in [0, 1], users drawn independently) with probability 0.975 the mean of n users is
    within sqrt(ln(2 / 0.025) / (2 m)) of that of all such users. The two together, by a union bound: 95 %.

    Args:
        total: noisy sum of values less a half.
        users: their noisy number.
        noise_sd: D.
    """
    least = users - _Z_USERS * noise_sd
    if least <= 0:
        return Estimate(None, 0.0, 1.0)
    mean = _MIDDLE + total / users
    by_noise = _Z_NOISE * noise_sd * math.sqrt(1 + _MIDDLE**2) / users
    by_range = math.sqrt(math.log(2 / _RANGE_ERROR) / (2 * least))
    low, value, high = np.clip([mean - by_noise - by_range, mean, mean + by_noise + by_range], 0.0, 1.0).tolist()
    return Estimate(value, low, high)


def release_means(exact: np.ndarray, params: EvaluationParams, release_id: str) -> pa.Table:
    """Adds noise to what `add_sums` gives: a table of data.tables.EVALUATIONS, a row for each model and metric."""
    sd = params.mechanism.noise_sd
    users, *sums = ((exact + noise.draw("chacha", len(exact), sd, GRID_BITS)) * 2.0**-GRID_BITS).tolist()
    asked = [(model, metric) for model in params.models for metric in params.metrics]
    rows = [
        {
            "window_start": params.window_start,
            "window_end": params.window_end,
            "release_id": release_id,
            "model": kind,
            "version": version,
            "metric": metric,
            "k": params.k,
            **estimate(total, users, sd)._asdict(),
            "users": round(users),
            "users_low": users - noise.Z95 * sd,
            "users_high": users + noise.Z95 * sd,
        }
        for ((kind, version), metric), total in zip(asked, sums, strict=True)
    ]
    return pa.Table.from_pylist(rows, tables.EVALUATIONS)


class _AskUsers(beam.DoFn):
    """A bucket to its users' sums."""

    def __init__(self, prepare: Callable[[], Measure], n_values: int):
        self._prepare, self._n_values = prepare, n_values

    def setup(self) -> None:
        self._measure = self._prepare()

    def process(self, bucket: pa.Table | spill.Part) -> Iterable[np.ndarray]:
        yield exact_sums(spill.read(bucket), self._measure, self._n_values)


class ReleaseEvaluation(beam.PTransform):
    """Releases the means of per-user metrics in [0, 1] of models, all compared models at once.

    Unit of protection: one privacy id with everything it did, added or removed. Mechanism: one Gaussian on the vector (number
    of users asked, for each model and metric the sum over them of the value less a half). A user is asked alone, adds 1 and at
    most a half to each sum, and so the vector's L2 sensitivity is sqrt(1 + models * metrics / 4), whatever the measure does:
    values are clipped here. Models and metrics are public or released before.

    In: CONTRIBUTIONS of the users to ask, one table a bucket, or where it lies. Out: a table of data.tables.EVALUATIONS for
    each grant (none if refused).

    Args:
        params: what is measured.
        grants: of the ledger.
        prepare: makes the measure, in the worker; one user's values must not hang on who was asked before.
    """

    def __init__(self, params: EvaluationParams, grants: beam.PCollection[ledger.Grant], prepare: Callable[[], Measure]):
        super().__init__()
        self._params, self._grants, self._prepare = params, grants, prepare

    def report(self) -> str:
        """Says how the numbers are made."""
        params = self._params
        return (
            f"Of each held-out user with items enough: {', '.join(params.metrics)} at k = {params.k} of {len(params.models)} "
            "models, each in [0, 1].\n"
            f"Gaussian mechanism: parameter={params.mechanism.noise_sd} on the number of users and on each sum of values less "
            f"a half; L2 sensitivity {params.mechanism.l2_sensitivity} of all of them together"
        )

    def expand(self, buckets: beam.PCollection[pa.Table | spill.Part]) -> beam.PCollection[pa.Table]:
        params = self._params
        return (
            buckets
            | "AskUsers" >> beam.ParDo(_AskUsers(self._prepare, params.n_values)).with_output_types(np.ndarray)
            | "AddSums" >> beam.CombineGlobally(functools.partial(add_sums, n_values=params.n_values))
            | "AddNoise"
            >> beam.FlatMap(
                lambda exact, grants: [release_means(exact, params, grant.release_id) for grant in grants],
                beam.pvalue.AsIter(self._grants),
            ).with_output_types(pa.Table)
        )
