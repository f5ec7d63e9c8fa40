"""An example of ranked lists, and what RecTools 0.19.0 says of it (Apache-2.0, github.com/MobileTeleSystems/RecTools).

RecTools needs numpy < 2 on Python 3.11 and 3.12, so it can't be beside us: its values are kept here. To make them anew:

    python3.11 -m venv /tmp/rectools && /tmp/rectools/bin/pip install rectools==0.19.0
    /tmp/rectools/bin/python tests/models/rectools_values.py
"""

LISTS = [[3, 0, 7, 1], [5, 2, 0, 9], [8, 4, 3, 6], [0, 1, 2, 3], [9, 8, 7, 6], [2, 5, 1, 10]]
"""By user, best first."""
HIDDEN = [[3, 1], [0], [1, 2, 5], [0, 1, 2, 3, 4, 5], [6, 11, 0], [7, 1, 10, 5, 2]]
"""By user; two have more hidden items than a list has places, one has no hit."""
TRAINING = [
    [0, 1, 2, 3], [0, 1, 5], [0, 2, 4, 6, 8], [0, 1, 2, 3, 4, 5, 6], [0, 9], [1, 2, 7], [0, 5, 3], [0, 8, 2, 1],
]  # fmt: skip
"""By user in training; nobody has items 10 and 11."""
FEATURES = [
    [1, 0, 0, 1], [1, 0, 0, 0], [0, 1, 0, 1], [0, 1, 1, 0], [1, 1, 0, 0], [0, 0, 1, 1],
    [1, 0, 1, 0], [0, 0, 0, 1], [1, 1, 1, 1], [0, 1, 0, 0], [0, 0, 1, 0], [1, 0, 0, 1],
]  # fmt: skip
"""By item."""
K = 4

EXPECTED = {
    "hits": [2.0, 1.0, 0.0, 4.0, 1.0, 4.0],
    "recall": [1.0, 1.0, 0.0, 0.666666666667, 0.333333333333, 0.8],
    "ndcg": [0.877215315338, 0.5, 0.0, 1.0, 0.202107346501, 1.0],
    "mrr": [1.0, 0.333333333333, 0.0, 1.0, 0.25, 1.0],
    "novelty": [1.321438620583, 1.321438620583, 1.85375937482, 0.740956596862, 2.5, 1.442795327376],
    "popularity": [4.0, 4.0, 2.25, 5.0, 1.5, 3.25],
    "diversity": [0.764297739604, 0.632148869802, 0.396446609407, 0.715482203136, 0.715482203136, 0.798815536469],
    "coverage": [0.916666666667],
}


def values() -> dict[str, list[float]]:
    """What RecTools says, by metric: a value for each user, or one of all."""
    import numpy as np
    import pandas as pd
    from rectools import Columns, metrics
    from rectools.metrics import distances

    class Cosine(distances.PairwiseDistanceCalculator):
        def _get_distances_for_item_pairs(self, items_0: list[int], items_1: list[int]) -> np.ndarray:
            a, b = (np.array(FEATURES, float)[list(items)] for items in (items_0, items_1))
            return 1 - (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)

    def pairs(by_user: list[list[int]]) -> pd.DataFrame:
        rows = [(user, item, rank) for user, items in enumerate(by_user) for rank, item in enumerate(items, 1)]
        return pd.DataFrame(rows, columns=[Columns.User, Columns.Item, Columns.Rank])

    shown, hidden, training = pairs(LISTS), pairs(HIDDEN), pairs(TRAINING)
    found = {
        "hits": metrics.Precision(K).calc_per_user(shown, hidden) * K,
        "recall": metrics.Recall(K).calc_per_user(shown, hidden),
        "ndcg": metrics.NDCG(K, divide_by_achievable=True).calc_per_user(shown, hidden),
        "mrr": metrics.MRR(K).calc_per_user(shown, hidden),
        "novelty": metrics.MeanInvUserFreq(K).calc_per_user(shown, training),
        "popularity": metrics.AvgRecPopularity(K).calc_per_user(shown, training),
        "diversity": metrics.IntraListDiversity(K, Cosine()).calc_per_user(shown),
        "coverage": [metrics.CatalogCoverage(K, normalize=True).calc(shown, range(len(FEATURES)))],
    }
    return {name: [round(float(value), 12) for value in each] for name, each in found.items()}


if __name__ == "__main__":
    for name, each in values().items():
        print(f'    "{name}": {each},')
