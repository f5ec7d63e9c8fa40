"""Gaussian noise on an integer grid, from a cryptographic stream.

The exact sums are integers on a grid. Noise is drawn in two parts: a Gaussian rounded to multiples of 2^k grid steps, about a
thousand millionth of the standard deviation, and k uniform bits below it. So the low bits of a release are uniform whatever the
exact sum is, which a double alone couldn't see to, and the high ones are those of a Gaussian mechanism on rounded sums.
`docs/privacy.md` has the argument, and says what it promises and what not.
"""

import math
import os
from typing import Literal

import numpy as np
import randomgen
from pipeline_dp import dp_computations
from scipy import stats

Source = Literal["chacha", "pipelinedp"]
Z95 = float(stats.norm.ppf(0.975))
"""95 % of a Gaussian lie within so many standard deviations."""

_DRAWS_AT_ONCE = 1 << 15
"""So that a part stays in the processor's cache."""
_FINE_BITS = 30
"""The rounded Gaussian's unit is at most 2^-30 of its standard deviation."""
_WIDER = 1 + 2.0**-10
"""Noise is drawn so much wider than it is charged: what rounding the sums may add to the sensitivity (docs/privacy.md)."""


def fresh_key() -> bytes:
    """Returns a 256-bit key from the operating system: one for each attempt and block, drawn where it is used."""
    return os.urandom(32)


def draw(source: Source, size: int, noise_sd: float, grid_bits: int) -> np.ndarray:
    """Draws rounded Gaussians of standard deviation `noise_sd`; int64 multiples of 2^-grid_bits, (size,).

    Args:
        source: "chacha", under a fresh key each time, or "pipelinedp", which is a hundred times slower.
        size: how many.
        noise_sd: as it is charged.
        grid_bits: of the exact sums.

    Raises:
        ValueError: noise_sd is not positive, or too large for the grid.
    """
    if source == "chacha":
        return grid_gaussian(size, noise_sd, grid_bits, fresh_key())
    return pipelinedp_gaussian(size, noise_sd, grid_bits)


def stream(key: bytes) -> np.random.Generator:
    """Returns a generator over ChaCha20 (Bernstein 2008; RFC 8439) under a key of 32 bytes."""
    return np.random.Generator(randomgen.ChaCha(key=int.from_bytes(key, "little"), rounds=20))


def grid_gaussian(size: int, noise_sd: float, grid_bits: int, key: bytes) -> np.ndarray:
    """Draws from ChaCha20 under `key`, by NumPy's ziggurat (Marsaglia and Tsang 2000). See `draw`."""
    _check(noise_sd, 58 - grid_bits)
    scale = math.ldexp(noise_sd * _WIDER, grid_bits)
    low_bits = max(0, math.frexp(scale)[1] - 1 - _FINE_BITS)
    generator = stream(key)
    normals = np.empty(_DRAWS_AT_ONCE)
    drawn = np.empty(size, np.int64)
    for start in range(0, size, _DRAWS_AT_ONCE):
        part = drawn[start : start + _DRAWS_AT_ONCE]
        coarse = normals[: len(part)]
        generator.standard_normal(out=coarse)
        coarse *= math.ldexp(scale, -low_bits)
        part[:] = np.rint(coarse, out=coarse)
        if low_bits:
            words = generator.bit_generator.random_raw((len(part) + 1) // 2).view(np.uint32)[: len(part)]
            part <<= low_bits
            # Uniform on 2^low_bits values around 0.
            part += words >> np.uint32(32 - low_bits)
            part -= 1 << (low_bits - 1)
    return drawn


def pipelinedp_gaussian(size: int, noise_sd: float, grid_bits: int) -> np.ndarray:
    """Draws by PipelineDP's Gaussian mechanism (Google's library, a secure source of its own). See `draw`."""
    # Its noise is a double, a multiple of 2^-56 of the standard deviation: fine enough below the grid only up to here.
    _check(noise_sd, 48 - grid_bits)
    mechanism = dp_computations.GaussianMechanism.create_from_std_deviation(noise_sd, 1.0)
    return np.rint(np.ldexp([mechanism.add_noise(0.0) for _ in range(size)], grid_bits)).astype(np.int64)


def _check(noise_sd: float, most_bits: int) -> None:
    if not 0 < noise_sd < math.ldexp(1.0, most_bits):
        raise ValueError(f"noise_sd must be in (0, 2^{most_bits}) on this grid, not {noise_sd}.")
