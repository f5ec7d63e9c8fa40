import numpy as np
import pytest
import scipy.sparse as sp

from models import denoise, ensemble, hybrid, spectral

KEPT, ALL, GROUPS = 60, 80, 8
LOADINGS = sp.csr_matrix(np.hstack([np.eye(GROUPS)[np.arange(ALL) % GROUPS], np.ones((ALL, 1))]), dtype=np.float32)
"""Items in groups by a public feature; the last 20 aren't kept."""
BY_FEATURES = 5 * (LOADINGS[:KEPT, :-1] @ LOADINGS[:KEPT, :-1].T).toarray().astype(np.float64)
TASTES = np.random.default_rng(0).normal(size=(KEPT, 3))
OTHERWISE = 3 * TASTES @ TASTES.T
"""Tastes that have nothing to do with the features."""


@pytest.fixture(autouse=True)
def any_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ensemble, "LEAST_WEIGHT", 0.0)


def noisy(signal: np.ndarray, noise_sd: float) -> np.ndarray:
    noise = np.triu(np.random.default_rng(1).normal(0, noise_sd, signal.shape), 1)
    return np.asarray(signal + noise + noise.T + 5 * np.eye(len(signal)))


def fit(matrix: np.ndarray, noise_sd: float, feature_rank: int = 100) -> hybrid.Model:
    signal = denoise.denoise(matrix, noise_sd)
    found = ensemble.fit(matrix, noise_sd, np.arange(KEPT), np.ones(ALL), LOADINGS, signal, 128, feature_rank)
    assert found is not None
    return found


def evidence(matrix: np.ndarray, noise_sd: float) -> ensemble.Evidence:
    scaled = ensemble.scale(matrix, np.arange(KEPT), np.ones(ALL), LOADINGS)
    return ensemble.weigh(matrix, noise_sd, scaled[:KEPT].toarray(), np.ones(KEPT), 128)


def test_features_weigh_as_much_as_they_foretell() -> None:
    assert evidence(noisy(BY_FEATURES, 20.0), 20.0).weight > 0.8
    assert evidence(noisy(BY_FEATURES + 5 * OTHERWISE, 1.0), 1.0).weight < 0.3


@pytest.mark.parametrize("noise_sd", [1e-3, 0.5, 1.0])
@pytest.mark.parametrize(("signal", "gain"), [(BY_FEATURES, 1.0), (OTHERWISE, 0.0)], ids=["tell all", "tell nothing"])
def test_the_gain_from_features_hardly_hangs_on_the_noise(signal: np.ndarray, gain: float, noise_sd: float) -> None:
    # Popularity, the same for all, explains 7/59 of what features do.
    assert evidence(noisy(signal, noise_sd), noise_sd).gain == pytest.approx(gain, abs=0.25)


@pytest.mark.parametrize(("signal", "strength"), [(BY_FEATURES, 5.0), (OTHERWISE, 0.0)], ids=["tell all", "tell nothing"])
def test_features_are_as_strong_as_the_matrix_says(signal: np.ndarray, strength: float) -> None:
    features = ensemble.scale(noisy(signal, 3.0), np.arange(KEPT), np.ones(ALL), LOADINGS)[:, :-1]
    # Of 60 * 59 / 16 cells with a mean of 5 the standard deviation is 0.2; OTHERWISE's own cells have 5.
    assert float(features.multiply(features).sum(1).mean()) == pytest.approx(strength, abs=1.5)


@pytest.mark.parametrize(("signal", "is_fitted"), [(BY_FEATURES, True), (OTHERWISE, False)], ids=["tell all", "tell nothing"])
def test_where_features_say_too_little_there_is_no_ensemble(
    signal: np.ndarray, is_fitted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ensemble, "LEAST_WEIGHT", 0.25)
    matrix = noisy(signal, 1.0)
    found = ensemble.fit(matrix, 1.0, np.arange(KEPT), np.ones(ALL), LOADINGS, denoise.denoise(matrix, 1.0), 128, 100)
    assert (found is not None) == is_fitted


def test_is_the_weighted_sum_of_both_guesses_among_kept_items() -> None:
    matrix, sd = noisy(BY_FEATURES + OTHERWISE, 2.0), 2.0
    content = ensemble.scale(matrix, np.arange(KEPT), np.ones(ALL), LOADINGS)[:KEPT]
    expected = (content @ content.T).toarray()
    share = evidence(matrix, sd).weight
    assert 0.02 < share < 0.98
    first = denoise.denoise(matrix, sd).matrix()
    second = expected + denoise.denoise(matrix - expected, sd).matrix()
    model = fit(matrix, sd)
    item = model.item.representation()
    # E = U R with R R^T = (I + A)^-1, so U U^T comes back from E E^T and E^T D^-1 E = L (I + L)^-1.
    own = item[:, 0] / model.history.representation()[:, 0]
    explained = (item**2 / own[:, None]).sum(0)
    tastes = item / np.sqrt(1 - explained)
    assert (tastes @ tastes.T)[:KEPT, :KEPT] == pytest.approx((1 - share) * first + share * second, abs=1e-5)


def test_scores_add_up_of_both_kinds_of_tastes() -> None:
    model = fit(noisy(BY_FEATURES + OTHERWISE, 6.0), 6.0)
    item, history = model.item, model.history
    whole = history.representation() @ item.representation().T
    through = [side.loadings @ side.features for side in (item, history)]
    parts = [(history.identity, item.identity), (history.identity, through[0]), (through[1], item.identity), through[::-1]]
    assert whole == pytest.approx(sum(one @ other.T for one, other in parts), abs=1e-5)


def test_an_item_that_was_not_kept_is_found_by_its_features_and_finds_others() -> None:
    model = fit(noisy(BY_FEATURES, 3.0), 3.0)
    scores = model.history.representation() @ model.item.representation().T
    np.fill_diagonal(scores, -np.inf)
    for item in (0, KEPT, ALL - 1):
        best = np.argsort(-scores[item])[: ALL // GROUPS - 1]
        assert set(best % GROUPS) == {item % GROUPS}


def test_noise_alone_ranks_by_popularity() -> None:
    popularity = np.linspace(2, 1, ALL)
    nothing = denoise.Spectrum(np.empty(0), np.empty((KEPT, 0)))
    model = ensemble.fit(
        -np.ones((KEPT, KEPT)) + 9 * np.eye(KEPT), 100.0, np.arange(KEPT), popularity, LOADINGS, nothing, 128, 9
    )
    scores = model.history.representation()[KEPT - 1] @ model.item.representation().T
    assert np.array_equal(np.argsort(-scores), np.arange(ALL))


@pytest.mark.parametrize("dense", [True, False], ids=["all eigenvectors", "the largest"])
def test_reduces_to_the_largest_directions(monkeypatch: pytest.MonkeyPatch, dense: bool) -> None:
    monkeypatch.setattr(ensemble, "_DENSE", 100 if dense else 1)
    rng = np.random.default_rng(2)
    loadings = sp.csr_matrix(rng.normal(size=(40, 3)) @ rng.normal(size=(3, 12)) + 0.01 * rng.normal(size=(40, 12)))
    own = rng.uniform(1, 2, 40)
    reduced = ensemble.reduce(loadings, own, 3)
    assert reduced.tastes.shape == (12, 3)
    assert reduced.share > 0.999
    kept = (loadings @ reduced.tastes) @ reduced.tastes.T
    assert np.abs(kept - loadings).max() < 0.1
    assert ensemble.reduce(loadings, own, 12).share == 1


def test_without_features_it_is_the_matrix_and_a_shared_taste() -> None:
    matrix = noisy(OTHERWISE, 0.5)
    ones = sp.csr_matrix(np.ones((ALL, 1), np.float32))
    model = ensemble.fit(matrix, 0.5, np.arange(KEPT), np.ones(ALL), ones, denoise.denoise(matrix, 0.5), 128, 512)
    plain = spectral.from_spectrum(denoise.denoise(matrix, 0.5), matrix, 0.5, np.ones(KEPT))
    found = model.history.representation()[:KEPT] @ model.item.representation()[:KEPT].T
    assert np.corrcoef(found.ravel(), (plain.history @ plain.item.T).ravel())[0, 1] > 0.95
