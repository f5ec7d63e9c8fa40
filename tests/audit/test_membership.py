"""Who was in, guessed from what is published: no attacker does better than allowed, and noise left out is seen."""

import pytest

from pipelines import config
from tests.audit import membership

USERS = 1000


@pytest.fixture(scope="module")
def job(tmp_path_factory) -> config.Job:
    directory = tmp_path_factory.mktemp("world") / "world"
    made = membership.world(directory, USERS, 100, 7)
    plain = {"kind": "hybrid", "signal": "low-rank"}
    return made.model_copy(update={"model": made.model.model_copy(update=plain)})


@pytest.mark.parametrize("epsilon", [1.0, 8.0])
def test_no_attacker_does_better_than_allowed(job, epsilon):
    by_mu, by_epsilon = membership.allowed(job, epsilon)
    assert by_mu < by_epsilon
    for mean, low, high in membership.run(job, epsilon).values():
        # One-sided, 5.2 standard errors: flake probability below 1e-6 for all six together.
        assert mean - by_mu < 5.2 * (high - low) / 2 / 1.96


def test_without_noise_who_knows_all_others_tells_everybody(job):
    """The control: were the attack blind, the test above would say nothing."""
    mean, *_ = membership.run(job, 8.0, with_noise=False)["knows all others"]
    assert mean > 0.999
    assert mean > membership.allowed(job, 8.0)[0]
