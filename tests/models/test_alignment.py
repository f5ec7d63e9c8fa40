"""Vectors of two versions, made comparable without a change to any score."""

import numpy as np
import pytest
import scipy.stats

from models import alignment

RNG = np.random.default_rng(0)


@pytest.mark.parametrize(("d", "e"), [(8, 8), (5, 8), (8, 5)])
def test_scores_stay_and_dimensions_suffice_for_both(d: int, e: int) -> None:
    item, history = RNG.normal(size=(2, 50, d))
    turn = alignment.rotation(item, history, *RNG.normal(size=(2, 50, e)))
    assert turn.shape == (d, 8)
    assert (history @ turn) @ (item @ turn).T == pytest.approx(history @ item.T)


@pytest.mark.parametrize("lost", [0, 3])
def test_finds_the_turn_between_two_versions_or_a_better_one(lost: int) -> None:
    item, history = RNG.normal(size=(2, 50, 8))
    # The newer version lacks some dimensions, is turned, and its histories have another size.
    turned = scipy.stats.ortho_group.rvs(8 - lost, random_state=1)
    new = item[:, lost:] @ turned, 5 * history[:, lost:] @ turned

    def gap(turn: np.ndarray) -> float:
        sides = zip(new, (item, history), strict=True)
        return sum(float(np.linalg.norm(a @ turn / np.linalg.norm(a) - b / np.linalg.norm(b)) ** 2) for a, b in sides)

    true = np.hstack([np.zeros((8 - lost, lost)), turned.T])
    found = alignment.rotation(*new, item, history)
    assert gap(found) <= gap(true) + 1e-9 < gap(np.eye(8)[: 8 - lost])
    if not lost:
        assert new[0] @ found == pytest.approx(item)


def test_without_items_in_common_any_turn_will_do() -> None:
    turn = alignment.rotation(*np.empty((2, 0, 3)), *np.empty((2, 0, 4)))
    assert turn @ turn.T == pytest.approx(np.eye(3))
