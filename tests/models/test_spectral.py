import numpy as np
import pytest

from models import spectral


def blocks(sizes: list[int], diagonal: float = 10.0) -> np.ndarray:
    """Items of one block occur together, items of two blocks never."""
    label = np.repeat(np.arange(len(sizes)), sizes)
    return (label[:, None] == label) * 5.0 + np.eye(len(label)) * (diagonal - 5.0)


def test_ranks_the_block_of_the_history_first() -> None:
    embeddings = spectral.fit(blocks([4, 4, 4]), np.ones(12), 0.0)
    scores = embeddings.history[5] @ embeddings.item.T
    assert set(np.argsort(-scores)[:4]) == {4, 5, 6, 7}
    assert np.allclose(scores[[0, 1, 8, 11]], 0, atol=1e-6)


def test_solves_the_factor_scores_equation() -> None:
    rng = np.random.default_rng(0)
    tastes = rng.normal(size=(30, 2))
    matrix, scores = tastes @ tastes.T, rng.uniform(1, 3, 30)
    embeddings = spectral.fit(matrix, scores, 0.0, max_rank=2)
    own = spectral.OWN_SHARE * np.trace(matrix) / 30 * (scores / scores.mean()) ** spectral.OWN_POWER
    expected = tastes @ np.linalg.inv(np.eye(2) + tastes.T @ (tastes / own[:, None])) @ (tastes / own[:, None]).T
    assert np.allclose(embeddings.item @ embeddings.history.T, expected, atol=1e-3)


@pytest.mark.parametrize(("edge", "mean"), [(0, 1.5), (1, 0.75), (2, 0.5), (9, 0.4)])
def test_own_variance_shrinks_with_the_tastes(edge: float, mean: float) -> None:
    own = spectral.own_variance(4 * np.eye(25), 4 * edge / 10, np.array([1.0, 4.0]))
    assert np.allclose(own, [4 * mean, 8 * mean])


def test_a_rare_item_says_more_than_a_common_one() -> None:
    embeddings = spectral.fit(blocks([4]), np.array([1.0, 1.0, 1.0, 9.0]), 0.0)
    to_second = embeddings.history @ embeddings.item[1]
    assert to_second[0] > to_second[3] > 0


def test_noise_alone_ranks_by_score() -> None:
    embeddings = spectral.fit(np.eye(4), np.array([1.0, 4.0, 2.0, 3.0]), 100.0)
    scores = embeddings.history[0] @ embeddings.item.T
    assert list(np.argsort(-scores)) == [1, 3, 2, 0]


def test_survives_scores_that_noise_made_negative() -> None:
    embeddings = spectral.fit(blocks([2, 2]), np.array([-3.0, -1.0, -2.0, -5.0]), 0.1)
    assert np.isfinite(embeddings.item).all()
    assert np.isfinite(embeddings.history).all()


@pytest.mark.parametrize("scores", [np.ones(3), np.array([1.0, np.nan, 1.0, 1.0])], ids=["length", "nan"])
def test_refuses_scores(scores: np.ndarray) -> None:
    with pytest.raises(ValueError, match="fit: scores must be finite, one for each of the 4 rows"):
        spectral.fit(np.eye(4), scores, 0.0)
