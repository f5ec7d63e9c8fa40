"""The noise source. The key is fixed, so these tests pass or fail for good; the rates say how often a fresh key would fail."""

import multiprocessing

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from scipy import special, stats

from transforms.privacy import noise

KEY = bytes(range(32))
DRAWS = 1_000_000


def fits_normal(sample: np.ndarray, sd: float) -> bool:
    """Kolmogorov-Smirnov against N(0, sd^2), at a false alarm rate of 1e-6."""
    return stats.kstest(sample / sd, "norm").pvalue > 1e-6


@pytest.mark.parametrize(("scale", "accepted"), [(1.0, True), (0.7, False), (1.3, False)])
def test_noise_has_the_claimed_scale(scale, accepted):
    drawn = noise.grid_gaussian(DRAWS, 4.0 * scale, 36, KEY) * 2.0**-36
    assert fits_normal(drawn, 4.0) == accepted


def test_tails_are_as_heavy_as_a_gaussians():
    drawn = noise.grid_gaussian(10 * DRAWS, 1.0, 36, KEY) * 2.0**-36
    for at in (3.0, 4.0, 4.75):
        expected = 10 * DRAWS * special.ndtr(-at)
        for count in (np.sum(drawn > at), np.sum(drawn < -at)):
            # A Poisson count, false alarm rate below 1e-6 for each of the six.
            assert stats.poisson.ppf(5e-8, expected) <= count <= stats.poisson.isf(5e-8, expected)


def test_the_stream_is_chacha20():
    cipher = Cipher(algorithms.ChaCha20(KEY, bytes(16)), None).encryptor()
    words = noise.stream(KEY).bit_generator.random_raw(10_000)
    assert words.tobytes() == cipher.update(bytes(80_000))


@pytest.mark.parametrize(("scale", "accepted"), [(1.0, True), (0.7, False), (1.3, False)])
def test_both_sources_draw_from_the_same_distribution(scale, accepted):
    ours, theirs = (noise.draw(source, 100_000, 4.0, 36) * 2.0**-36 for source in ("chacha", "pipelinedp"))
    # Two-sample Kolmogorov-Smirnov, and theirs against the normal; flake probability 2e-6 with fresh keys.
    assert (stats.ks_2samp(ours * scale, theirs).pvalue > 1e-6) == accepted
    assert fits_normal(theirs * scale, 4.0) == accepted


def one_double(size: int, noise_sd: float) -> np.ndarray:
    """The control: a Gaussian in one double of the whole scale, rounded."""
    return np.rint(noise.stream(KEY).standard_normal(size) * noise_sd * 2.0**36).astype(np.int64)


@pytest.mark.parametrize("noise_sd", [1.0, 2.0**10, 2.0**18, 2.0**21])
@pytest.mark.parametrize("modulus", [2, 16])
def test_low_bits_are_as_random_as_high_ones(noise_sd, modulus):
    """Else the release would show the low bits of the exact sum."""

    def even_handed(drawn: np.ndarray) -> bool:
        # Chi-squared over the residues, at a false alarm rate of 1e-6.
        return stats.chisquare(np.bincount(drawn % modulus, minlength=modulus)).pvalue > 1e-6

    assert even_handed(noise.grid_gaussian(DRAWS, noise_sd, 36, KEY))
    if noise_sd >= 2.0**18:
        assert not even_handed(one_double(DRAWS, noise_sd))


def drawn_by(source: str = "chacha") -> np.ndarray:
    return noise.draw(source, 100_000, 1.0, 36) * 2.0**-36


def uncorrelated(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two samples of standard Gaussians look independent, at a false alarm rate of 1e-7."""
    return abs(np.mean(one * other)) < 5.3 / np.sqrt(len(one))


def test_cells_are_independent():
    drawn = noise.grid_gaussian(DRAWS, 1.0, 36, KEY) * 2.0**-36
    smoothed = (drawn[1:] + drawn[:-1]) / np.sqrt(2)  # the control: each draw goes into two cells
    for lag in (1, 2, 3):
        assert uncorrelated(drawn[:-lag], drawn[lag:])
    assert not uncorrelated(smoothed[:-1], smoothed[1:])


@pytest.mark.parametrize("source", ["chacha", "pipelinedp"])
def test_blocks_and_attempts_are_independent(source):
    assert uncorrelated(drawn_by(source), drawn_by(source))


def test_a_reused_key_is_caught(monkeypatch):
    monkeypatch.setattr(noise, "fresh_key", lambda: KEY)
    assert not uncorrelated(drawn_by(), drawn_by())


@pytest.mark.parametrize("is_fresh", [True, False], ids=["a key of its own", "a key from before the fork"])
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_forked_workers_draw_other_noise(monkeypatch, is_fresh):
    if not is_fresh:
        monkeypatch.setattr(noise, "fresh_key", lambda: KEY)
    with multiprocessing.get_context("fork").Pool(2) as pool:
        one, other = pool.map(drawn_by, ["chacha", "chacha"], chunksize=1)
    assert uncorrelated(one, other) == is_fresh


def test_parts_join_without_repeating():
    drawn = noise.grid_gaussian(3 * (1 << 15) + 5, 1.0, 36, KEY)
    assert len(np.unique(drawn)) == len(drawn)


@pytest.mark.parametrize("noise_sd", [0.0, -1.0, 2.0**22, float("nan")])
@pytest.mark.parametrize("source", ["chacha", "pipelinedp"])
def test_a_scale_that_the_grid_cannot_hold_is_refused(source, noise_sd):
    with pytest.raises(ValueError, match="noise_sd must be in"):
        noise.draw(source, 10, noise_sd, 36)
