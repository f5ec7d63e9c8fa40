"""Windows in one: exact averages where they can be told, and less noise."""

import numpy as np
import pytest
import scipy.sparse as sp

from models import denoise, training, windows


def released(ids: str, kept: str, value: float, noise_sd: float = 1.0) -> training.Released:
    """Items of one letter; every cell has the same value, and every score ten times that."""
    known = np.array([ids.index(item) for item in kept])
    matrix = np.full((len(kept), len(kept)), value)
    return training.Released(
        list(ids), np.full(len(ids), 10 * value), known, matrix, noise_sd, [training.ALL_ITEMS], sp.csr_matrix((len(ids), 1))
    )


def test_a_window_alone_stays_as_it_is() -> None:
    one = released("abc", "ab", 2.0)
    found = windows.combine(one, [], 0.5)
    assert np.array_equal(found.matrix, one.matrix)
    assert found.noise_sd == one.noise_sd


def test_each_cell_is_the_average_of_the_windows_that_have_it() -> None:
    newest = released("abcd", "abc", 1.0)
    found = windows.combine(newest, [released("xca", "ca", 4.0), released("ab", "ba", 7.0)], 0.5)
    every, two, one = (1 + 4 / 2 + 7 / 4) / 1.75, (1 + 4 / 2) / 1.5, (1 + 7 / 4) / 1.25
    assert found.matrix == pytest.approx(np.array([[every, one, two], [one, one, 1.0], [two, 1.0, two]]))
    assert found.scores == pytest.approx([10 * every, 10 * one, 10 * two, 10.0])
    assert newest.matrix[0, 0] == 1.0


def test_the_order_of_items_in_the_windows_does_not_matter() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(3, 3))
    values += values.T
    first = released("abc", "abc", 0.0)
    turned = released("cab", "cab", 0.0)._replace(matrix=values[np.ix_([2, 0, 1], [2, 0, 1])])
    assert windows.combine(first, [turned], 1.0).matrix == pytest.approx(values / 2)


@pytest.mark.parametrize(("decay", "expected"), [(1.0, 3**-0.5), (0.5, (1 + 1 / 4 + 1 / 16) ** 0.5 / 1.75)])
def test_noise_shrinks_as_independent_draws_do(decay: float, expected: float) -> None:
    same = released("ab", "ab", 1.0)
    assert windows.combine(same, [same, same], decay).noise_sd == pytest.approx(expected)


def test_no_eigenvalue_of_the_noise_of_unlike_windows_is_far_above_the_edge() -> None:
    rng, n = np.random.default_rng(1), 300
    ids = "".join(chr(0x4E00 + number) for number in range(n))

    def noise(kept: str, sd: float) -> training.Released:
        drawn = np.triu(rng.normal(0, sd, (len(kept), len(kept))), 1)
        return released(ids, kept, 0.0, sd)._replace(matrix=drawn + drawn.T)

    found = windows.combine(noise(ids, 1.0), [noise(ids[:200], 0.5), noise(ids[100:], 2.0)], 0.8)
    edge = denoise.noise_edge(found.noise_sd, n)
    assert 0.7 * edge < np.linalg.eigvalsh(found.matrix).max() < 1.05 * edge


def test_refuses_a_decay_that_is_none() -> None:
    with pytest.raises(ValueError, match="decay must be in"):
        windows.combine(released("a", "a", 1.0), [], 0.0)
