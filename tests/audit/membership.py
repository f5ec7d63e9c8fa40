"""Membership inference on the synthetic world: who of the users was in, guessed from the published tables and recommendations.

    python -m tests.audit.membership --users 4000 --items 300 --epsilons 1 8

Each user is in with probability 1/2; all events are there for attackers to learn from. By epsilon, and without noise, the area
under the curve (AUC) of three attackers, with 95 % intervals (DeLong):

- "knows all others": has all events of all other users exactly, and takes the likelihood ratio of the tables with and without
  the user, which no attacker on the tables beats;
- "tables alone": doesn't know who else is in. Compares a user's term with the tables, and has learnt how to weigh that from
  half of the users, of whom it knows whether they were in;
- "recommendations": gives half of a user's items as a history, and looks for the other half in what the model recommends, by
  score, rank and among the first 20; learns as the second does.

Beside them what differential privacy allows any attacker: by the Gaussians' mu, and by (epsilon, delta).
"""

import argparse
import math
import pathlib
import tempfile

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines import attack, config, evaluate, plan, source, synth
from transforms.ingest import pseudonym
from transforms.privacy import auditing, budget, noise
from transforms.privacy import filter as privacy_filter

ATTACKERS = ("knows all others", "tables alone", "recommendations")
K = 20


def run(job: config.Job, epsilon: float, with_noise: bool = True) -> dict[str, tuple[float, float, float]]:
    """The AUC of each attacker, and its interval, on one release at so much epsilon."""
    job = config.changed(job, {"privacy.total_epsilon": epsilon})
    public = source.load_catalogue(job)
    public_ids = source.ids_of(public)
    batches = evaluate.read(job, public_ids)
    rows = evaluate.contributions(job, batches)
    ids = rows["privacy_id"].combine_chunks().dictionary
    coins = noise.stream(noise.fresh_key()).integers(0, 2, len(ids)).astype(bool)
    inside = _of(rows, ids.filter(pa.array(coins)))
    planned = plan.plan(job, public_ids)
    planned = planned if with_noise else evaluate.without_noise(planned)
    released = attack.release(job, planned, inside, public)
    own = attack.terms(planned, released.tables.items, rows, ids)
    sums = attack.noisy(planned, released)
    others = attack.products(own, sums.less(attack.exact(planned, released.tables.items, inside)), planned.mechanisms)
    size = _sizes(own, planned)
    ratio = sum(others[name] + coins * size[name] - size[name] / 2 for name in others)
    seen = attack.products(own, sums, planned.mechanisms)
    tables = np.column_stack([*seen.values(), *size.values(), own.rows @ np.diag(sums.matrix)])
    return {
        "knows all others": auditing.auc(ratio[coins], ratio[~coins]),
        "tables alone": _learnt(tables, coins),
        "recommendations": _learnt(_recommended(own, released.recommending), coins),
    }


def _of(rows: pa.Table, ids: pa.Array) -> pa.Table:
    """CONTRIBUTIONS of these users alone, as if nobody else had been there."""
    return rows.filter(pc.is_in(rows["privacy_id"].cast(pa.binary(16)), value_set=ids)).unify_dictionaries()


def _sizes(own: attack.Terms, planned: plan.Plan) -> dict[str, np.ndarray]:
    """By mechanism the squared norm of each user's term, in units of the noise's variance."""
    square = {
        name: np.asarray(term.multiply(term).sum(1)).ravel()
        for name, term in zip(
            (budget.SELECTION, budget.COUNTS_USERS, budget.COUNTS_EVENTS, budget.COOCCURRENCE), own, strict=True
        )
    }
    square[budget.COOCCURRENCE] **= 2
    return {name: values / attack.variance(planned.mechanisms[name]) for name, values in square.items()}


def _recommended(own: attack.Terms, recommending: np.ndarray) -> np.ndarray:
    """What is seen of each user: hits, score and rank of the second half of its items when the first is the history."""
    usual = recommending.mean(0)
    found = np.zeros((own.rows.shape[0], 6))
    for user in range(len(found)):
        items = own.rows.indices[own.rows.indptr[user] : own.rows.indptr[user + 1]]
        history, hidden = items[::2], items[1::2]
        if not len(hidden):
            continue
        scores = recommending[history].mean(0)
        z = (scores - scores.mean()) / scores.std()
        ranks = np.argsort(np.argsort(-np.delete(np.r_[scores], history))) if len(history) else np.arange(len(scores))
        place = np.searchsorted(np.delete(np.arange(len(scores)), history), hidden)
        rank = ranks[place]
        found[user] = (rank < K).mean(), z[hidden].mean(), np.log1p(rank).mean(), usual[hidden].mean(), len(items), 1
    return found


def _learnt(features: np.ndarray, coins: np.ndarray) -> tuple[float, float, float]:
    """The AUC, on every second user, of a linear score that was fitted to the others."""
    scaled = (features - features.mean(0)) / np.maximum(features.std(0), 1e-9)
    weights = np.linalg.lstsq(scaled[::2], coins[::2] - 0.5, rcond=None)[0]
    scores, truth = scaled[1::2] @ weights, coins[1::2]
    return auditing.auc(scores[truth], scores[~truth])


def allowed(job: config.Job, epsilon: float) -> tuple[float, float]:
    """What no attacker exceeds: by the mu of the release's Gaussians, and by (epsilon, delta) alone."""
    job = config.changed(job, {"privacy.total_epsilon": epsilon})
    mechanisms = plan.plan(job, source.public_items(job)).mechanisms
    mu = math.sqrt(privacy_filter.total_cost("gaussian", (each.noise_multiplier for each in mechanisms.values())))
    return auditing.largest_gaussian_auc(mu), auditing.largest_auc(epsilon, job.privacy.total_delta)


def world(directory: pathlib.Path, users: int, items: int, seed: int) -> config.Job:
    """A synthetic world's job."""
    synth.run(directory, users, items, seed)
    pseudonym.write_key(directory / "pseudonym.key")
    return config.load(directory / "job.toml")[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=4000)
    parser.add_argument("--items", type=int, default=300)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--epsilons", type=float, nargs="+", default=[1.0, 8.0])
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        job = world(pathlib.Path(directory) / "world", given.users, given.items, given.seed)
        print("epsilon  " + "  ".join(f"{name:<22}" for name in (*ATTACKERS, "allowed: mu", "allowed: (eps, delta)")))
        for epsilon in [*given.epsilons, None]:
            found = run(job, epsilon or 8.0, epsilon is not None)
            bounds = (1.0, 1.0) if epsilon is None else allowed(job, epsilon)
            shown = [f"{mean:.3f} [{low:.3f}, {high:.3f}]" for mean, low, high in found.values()]
            cells = [*shown, *(f"{bound:.4f}" for bound in bounds)]
            print(
                f"{'none' if epsilon is None else f'{epsilon:g}':<9}" + "  ".join(f"{cell:<22}" for cell in cells), flush=True
            )


if __name__ == "__main__":
    main()
