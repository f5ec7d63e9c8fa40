import numpy as np
import pyarrow as pa
import pytest
import scipy.sparse as sp

from data import tables
from data.catalogue import Catalogue
from models import ranking, scoring, training

BLOCKS, SIZE = 3, 8
N = BLOCKS * SIZE
IDS = [f"i{i}" for i in range(N)]


def release(noise_sd: float = 0.05) -> training.Released:
    """Three blocks of items, each a genre of its own; of each block the last item is in the catalogue alone."""
    kept = [i for i in range(N) if i % SIZE < SIZE - 1]
    label = np.array(kept) // SIZE
    matrix = (label[:, None] == label) * 2.0 + np.eye(len(kept)) * 2.0
    noise = np.triu(np.random.default_rng(0).normal(0, noise_sd, matrix.shape), 1)
    matrix += noise + noise.T
    row, column = np.triu_indices(len(kept))
    pairs = pa.table([row.astype(np.int32), column.astype(np.int32), matrix[row, column]], names=tables.ITEM_PAIRS.names).cast(
        tables.ITEM_PAIRS
    )
    position = np.arange(len(kept), dtype=np.int32)
    scores = np.linspace(3, 2, len(kept))
    items = pa.table([[IDS[i] for i in kept], scores, position], names=tables.ITEMS.names).cast(tables.ITEMS)
    catalogue = Catalogue(pa.table({"item_id": IDS, "genre": [f"g{i // SIZE}" for i in range(N)]}), {"genre": "categorical"})
    return training.read(items, pairs, noise_sd, catalogue)


def columns(released: training.Released) -> np.ndarray:
    return np.array([IDS.index(item) for item in released.ids])


def history(*items: int) -> sp.csr_matrix:
    return sp.csr_matrix((np.ones(len(items), np.float32), (np.zeros(len(items), int), items)), shape=(1, N))


def recommend(name: str, k: int, *items: int) -> list[int]:
    released = release()
    found = ranking.rank(scoring.BY_NAME[name](released, columns(released)), history(*items), k)
    return [int(item) for item in found[0]]


@pytest.mark.parametrize("name", [name for name in scoring.BY_NAME if name != "popularity"])
def test_recommends_the_block_of_the_history(name: str) -> None:
    assert set(recommend(name, SIZE - 3, 8, 9)) < set(range(SIZE, 2 * SIZE))


@pytest.mark.parametrize("name", ["content", "hybrid, low-rank", "hybrid, stacked", "ensemble, low-rank", "ensemble, stacked"])
def test_features_reach_items_of_the_catalogue_alone(name: str) -> None:
    assert 15 in recommend(name, 6, 8, 9)


def test_popularity_is_the_noisy_scores() -> None:
    assert recommend("popularity", 3, 0) == [1, 2, 3]


@pytest.mark.parametrize("name", ["popularity", "EASE", "spectral, low-rank", "spectral, stacked"])
def test_items_without_aggregates_cannot_be_recommended(name: str) -> None:
    released = release()
    scores = scoring.BY_NAME[name](released, columns(released))(history(0))
    assert np.flatnonzero(~np.isfinite(scores[0])).tolist() == [7, 15, 23]


@pytest.mark.parametrize("name", scoring.BY_NAME)
def test_the_same_release_gives_the_same_scores(name: str) -> None:
    one, other = (scoring.BY_NAME[name](release(), columns(release()))(history(3, 17)) for _ in range(2))
    assert np.array_equal(one, other)


def test_an_empty_history_is_scored() -> None:
    released = release()
    for fit in scoring.BY_NAME.values():
        assert not np.isnan(fit(released, columns(released))(history())).any()
