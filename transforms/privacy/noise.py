"""Gaussian noise on an integer grid, from a cryptographic stream.

The exact sums are integers on a grid. Adding a real Gaussian and rounding to the grid equals adding the rounded Gaussian,
so the release is post-processing of the Gaussian mechanism, up to how well the draws approximate a real Gaussian. Two things
are made sure of: the tails are as fine as the middle, and the low bits of a draw are as random as its high ones (one double
of large scale has few bits below the grid; rounding its ties to even would show the parity of the exact sum).
`docs/privacy.md` says what that promises and what not.
"""

import math
import os

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from scipy import special

_BYTES_PER_DRAW = 16
_DRAWS_AT_ONCE = 1 << 20
_FINE_STEPS = 2.0**20


def fresh_key() -> bytes:
    """Returns a 256-bit key from the operating system: one for each attempt and block, drawn where it is used."""
    return os.urandom(32)


def gaussian(size: int, key: bytes) -> np.ndarray:
    """Draws independent standard Gaussians from AES-256 in counter mode under `key`, shape (size,), float64.

    Each uses 128 bits: a sign, and a uniform u = (k + v) / 2^53 in (0, 1/2) with k of 52 and v of 53 bits, through the
    inverse of the normal distribution function. Without v the tails would be coarser than the grid.
    """
    stream = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()
    draws = np.empty(size)
    for start in range(0, size, _DRAWS_AT_ONCE):
        n = min(_DRAWS_AT_ONCE, size - start)
        words = np.frombuffer(stream.update(bytes(n * _BYTES_PER_DRAW)), np.uint64)
        coarse, fine = words[:n], words[n:]
        u = ((coarse >> np.uint64(12)) + ((fine >> np.uint64(11)) + 0.5) * 2.0**-53) * 2.0**-53
        z = special.ndtri(u)
        draws[start : start + n] = np.where(coarse & np.uint64(1), z, -z)
    return draws


def grid_gaussian(size: int, noise_sd: float, grid_bits: int, key: bytes) -> np.ndarray:
    """Draws Gaussians of standard deviation `noise_sd`, rounded to multiples of 2^-grid_bits; int64 multiples, (size,).

    Each is the sum of a coarse and a fine Gaussian, whose variances add up. The fine one is small enough for a double to have
    30 bits below the grid, and wide enough (2^20 grid steps, where the scale allows) to smooth whatever the coarse one lacks.

    Raises:
        ValueError: noise_sd so large that 64 bits of the grid can't hold it, or not positive.
    """
    if not 0 < noise_sd < math.ldexp(1.0, 58 - grid_bits):
        raise ValueError(
            f"grid_gaussian: noise_sd must be in (0, 2^{58 - grid_bits}) on a 2^-{grid_bits} grid, not {noise_sd}."
        )
    scale = math.ldexp(noise_sd, grid_bits)
    fine_scale = min(_FINE_STEPS, scale / 4)
    draws = gaussian(2 * size, key)
    coarse = draws[:size] * math.sqrt(scale**2 - fine_scale**2)
    whole = np.floor(coarse)
    return whole.astype(np.int64) + np.rint((coarse - whole) + draws[size:] * fine_scale).astype(np.int64)
