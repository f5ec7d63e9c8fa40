import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from models import splits

RNG = np.random.default_rng(3)
PAIRS = np.unique(np.c_[RNG.integers(0, 2**62, 4_000)[RNG.integers(0, 4_000, 60_000)], RNG.integers(0, 50, 60_000)], axis=0)
MET = splits.Interactions(PAIRS[:, 0].astype(np.uint64), PAIRS[:, 1], RNG.integers(0, 1000, len(PAIRS)))


def rows(met: splits.Interactions, mask: np.ndarray) -> set[tuple[int, ...]]:
    return set(zip(*(column[mask].tolist() for column in met), strict=True))


def by(kind: str, met: splits.Interactions, seed: int = 0) -> splits.Split:
    return splits.by_users(met, 0.2, seed) if kind == "users" else splits.by_time(met, 700)


def test_nobody_who_is_asked_is_in_training() -> None:
    split = by("users", MET)
    trained, asked = set(MET.user[split.train].tolist()), set(MET.user[split.history | split.hidden].tolist())
    assert not trained & asked
    # 4,000 users at 0.2: six standard deviations are 0.04.
    assert abs(1 - len(trained) / len(set(MET.user.tolist())) - 0.2) < 0.04


def test_a_fifth_of_each_ones_items_is_hidden_rounded_down() -> None:
    split = by("users", MET)
    users, sizes = np.unique(MET.user, return_counts=True)
    hidden, history = (np.isin(MET.user, MET.user[split.hidden]) & mask for mask in (split.hidden, split.history))
    for user, size in zip(users, sizes, strict=True):
        if user in MET.user[split.hidden]:
            assert (hidden[user == MET.user].sum(), history[user == MET.user].sum()) == (size // 5, size - size // 5)
    out = ~np.isin(users, MET.user[split.train])
    assert set(users[out & (sizes >= 5)]) == set(MET.user[split.hidden])


def test_by_time_what_is_hidden_comes_after_all_that_is_known() -> None:
    split = by("time", MET)
    assert (split.train == (MET.time < 700)).all()
    assert MET.time[split.history].max() < 700 <= MET.time[split.hidden].min()
    assert set(MET.user[split.history]) == set(MET.user[split.hidden])
    both = set(MET.user[MET.time < 700]) & set(MET.user[MET.time >= 700])
    assert set(MET.user[split.hidden]) == both


@pytest.mark.parametrize("kind", ["users", "time"])
def test_the_order_of_rows_changes_nothing(kind: str) -> None:
    order = RNG.permutation(len(MET.user))
    shuffled = splits.Interactions(*(column[order] for column in MET))
    for ours, theirs in zip(by(kind, MET), by(kind, shuffled), strict=True):
        assert rows(MET, ours) == rows(shuffled, theirs)


def test_another_user_changes_nothing_of_mine() -> None:
    others = MET.user != MET.user[0]
    fewer = splits.Interactions(*(column[others] for column in MET))
    for ours, theirs in zip(by("users", MET), by("users", fewer), strict=True):
        assert (ours[others] == theirs).all()


def test_another_seed_is_another_split() -> None:
    first, second = by("users", MET, 1), by("users", MET, 2)
    assert rows(MET, first.hidden) == rows(MET, by("users", MET, 1).hidden)
    share = (first.train & second.train).mean()
    # Independent: 0.8^2, the users' sizes being alike.
    assert 0.6 < share < 0.68


@hypothesis.given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 4), st.integers(0, 9)), max_size=40))
def test_first_meetings_are_the_earliest_of_each_pair(events: list[tuple[int, int, int]]) -> None:
    columns = np.array(events, np.int64).reshape(-1, 3).T
    met = splits.first_meetings(columns[0].astype(np.uint64), columns[1], columns[2])
    expected: dict[tuple[int, int], int] = {}
    for user, item, time in events:
        expected[user, item] = min(time, expected.get((user, item), time))
    assert list(zip(*(column.tolist() for column in met), strict=True)) == sorted((*pair, t) for pair, t in expected.items())


def test_the_matrix_has_a_row_for_each_user() -> None:
    met = splits.Interactions(np.array([7, 7, 3], np.uint64), np.array([0, 2, 1]), np.zeros(3, np.int64))
    found = splits.matrix(met, np.array([True, True, True]), np.array([3, 7], np.uint64), 4)
    assert found.toarray().tolist() == [[0, 1, 0, 0], [1, 0, 1, 0]]


def test_the_test_starts_where_its_share_is_left() -> None:
    start = splits.start_of_test(MET, 0.2)
    assert 0.19 < (MET.time >= start).mean() < 0.22


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_refuses_a_share(share: float) -> None:
    with pytest.raises(ValueError, match=r"by_users: share must be in \(0, 1\), not"):
        splits.by_users(MET, share, 0)
