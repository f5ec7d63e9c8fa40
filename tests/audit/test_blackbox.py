"""What a user can show of itself stays within what it is charged, by what is released; and every control is caught.

Here in short; `make audit` has 100,000 runs of each case and prints the tables of docs/privacy.md. Alarms are false with a
probability of 1e-6 (bounds.ALARM), for all cases together.
"""

import pytest

from tests.audit import blackbox, bounds, neighbours, table

SHORT = 10_000


@pytest.fixture(scope="module")
def audited(tmp_path_factory) -> blackbox.Audited:
    return blackbox.Audited(tmp_path_factory.mktemp("audited"))


@pytest.mark.parametrize("name", neighbours.CASES)
def test_what_a_user_changes_before_noise_is_within_its_charge(audited, name):
    case = neighbours.CASES[name]
    pair, _ = audited.pair(case)
    assert neighbours.shown(audited.planned, pair) <= neighbours.charged(audited.planned, case.windows)


def test_two_windows_are_the_whole_contract(audited):
    mu = neighbours.charged(audited.planned, 2)
    assert bounds.epsilon_of(mu, neighbours.DELTA) == pytest.approx(neighbours.EPSILON, rel=1e-6)


def test_the_whole_released_vector_comes_near_the_claim_and_not_above(audited):
    row = blackbox.measure(audited, neighbours.EXTREME, SHORT)
    assert row.is_within
    # The bound is 7 standard deviations above this.
    assert row.measured > 0.8 * row.claimed


@pytest.mark.parametrize(
    ("look", "runs"),
    [
        (blackbox.keys_of_one, SHORT),
        (blackbox.keys_of_a_crowd, SHORT),
        (blackbox.two_windows_of_scores, SHORT),
        (blackbox.measure_evaluation, SHORT // 5),
    ],
    ids=lambda each: getattr(each, "__name__", each),
)
def test_keys_pairs_of_windows_and_evaluations_tell_no_more_than_is_charged(audited, look, runs):
    row = look(audited, runs)
    assert row.is_within
    assert row.measured > 0


@pytest.mark.parametrize("broken", blackbox.INVARIANTS, ids=lambda each: each.__name__)
def test_an_invariant_holds(tmp_path, broken):
    assert not broken(tmp_path)


@pytest.mark.parametrize("name", blackbox.CONTROLS)
def test_a_control_is_caught(audited, name):
    control = blackbox.CONTROLS[name]
    assert blackbox.caught(audited, control, control.runs)


@pytest.mark.slow
def test_the_audit_at_length(tmp_path, capsys):
    with capsys.disabled():
        rows, caught = table.audit(tmp_path, blackbox.RUNS, lambda line: print(line, flush=True))
    assert [row.case for row in rows if not row.is_within] == []
    assert None not in caught.values()
    # An audit that never comes near proves little. Seven standard deviations or more below what the table usually has.
    gaussian = len(neighbours.CASES) + len(neighbours.MECHANISMS)
    least = [0.9] * gaussian + [0.75] * (len(rows) - gaussian)
    assert [row.case for row, share in zip(rows, least, strict=True) if row.measured < share * row.exact] == []
