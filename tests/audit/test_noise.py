"""The noise source at length: what CI's short tests can't see. `make audit` runs these; keys are fresh each time."""

import math

import numpy as np
import pytest
from scipy import special, stats

from transforms.privacy import noise

BLOCK = 4_000_000
BLOCKS = 50

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def statistics() -> dict[str, np.ndarray]:
    """200 million draws at standard deviation 4, on the 2^-36 grid, each block under a key of its own."""
    tails = np.zeros(4, np.int64)
    residues = np.zeros(16, np.int64)
    across, last = [], np.zeros(BLOCK)
    for _ in range(BLOCKS):
        drawn = noise.grid_gaussian(BLOCK, 4.0, 36, noise.fresh_key())
        z = drawn * 2.0**-36 / 4.0
        tails += [np.sum(z > 4), np.sum(z < -4), np.sum(z > 5), np.sum(z < -5)]
        residues += np.bincount(drawn % 16, minlength=16)
        across.append(float(np.mean(z * last)))
        last = z
    return {"tails": tails, "residues": residues, "across": np.array(across[1:])}


@pytest.mark.parametrize(("index", "at"), [(0, 4.0), (1, 4.0), (2, 5.0), (3, 5.0)])
@pytest.mark.parametrize(("scale", "accepted"), [(1.0, True), (0.9, False)])
def test_tails_to_five_sigma(statistics, index, at, scale, accepted):
    expected = BLOCK * BLOCKS * special.ndtr(-at * scale)
    # Poisson, flake probability 1e-6; the control is what noise at 0.9 of the charge would look like.
    low, high = stats.poisson.ppf(5e-7, expected), stats.poisson.isf(5e-7, expected)
    assert (low <= statistics["tails"][index] <= high) == accepted


def test_low_bits_at_the_scale_of_a_release(statistics):
    assert stats.chisquare(statistics["residues"]).pvalue > 1e-6


def test_blocks_under_other_keys_are_independent(statistics):
    # 49 correlations, flake probability below 1e-6 together.
    assert np.max(np.abs(statistics["across"])) < 6 / math.sqrt(BLOCK)
