"""What must be so whatever the events are, and is no matter of chance: windows, charges, attempts, models, manifests.

Each function says whether it is broken, in a new directory: one run shows it.
"""

import contextlib
import dataclasses
import datetime as dt
import pathlib

import pyarrow as pa

from data import errors, ledger, store, tables
from pipelines import config, contract, plan, release, train
from tests.audit import neighbours
from tests.pipelines import graph, test_guard
from transforms.ingest import pseudonym
from transforms.release import commit, cooccurrence, counts, grant, selection

FEW, ALONE = neighbours.FIRST_WEEK, neighbours.CASES["alone in a window"].does
"""Events that leave the second window empty, and those of a user who is alone in it."""


def windows_hang_on_events(directory: pathlib.Path) -> bool:
    """Whether other windows would be released when a user is alone in one of them."""
    job, found = neighbours.write(directory), []
    for lines in (FEW, [*ALONE, *FEW]):
        neighbours.put(job, lines)
        found.append(list(release.waiting(job, job.window.end + job.window.slack)))
    return found[0] != found[1]


class _Window:
    """One window of a job, which several attempts release; and what readers have seen of it."""

    def __init__(self, job: config.Job):
        [self.planned, _] = neighbours.plans(job)
        self.kept, self.account = store.Store(job.job.store), contract.open_ledger(job)
        self.seen: set[tuple[str, str]] = set()

    def reserve(self, attempt: str) -> list[ledger.Grant]:
        """Asks the ledger as ReserveBudget does."""
        planned = dataclasses.replace(self.planned, attempt=attempt)
        request = planned.request(pseudonym.read_key(planned.job.privacy.key_file), {}, 0)
        asked = grant.Asked(planned.ledger_url, request, self.kept.place, 0.0, {}, dt.datetime.now(dt.UTC))
        return list(grant.reserve({"ok": 1}, asked))

    def draw(self, attempt: str) -> list[str]:
        """Draws all tables of the window into an attempt; returns its parts."""
        exact, planned = neighbours.exact(self.planned), self.planned
        scores = pa.table([list(exact.items), exact.scores], selection.SCORES)
        items = selection.release_scores(scores, plan.selection_params(planned))
        types = ["view"] * len(exact.items)
        counted = pa.table([list(exact.items), types, exact.users, exact.events], counts.EXACT_COUNTS)
        order = [exact.items.index(item) for item in cooccurrence.kept_items(items).to_pylist()]
        whole = exact.pairs + exact.pairs.T
        whole[range(len(order)), range(len(order))] //= 2
        block = ((0, len(order), len(order)), whole[order][:, order])
        drawn = {
            "items": items,
            "item_counts": counts.release_counts(counted, items, plan.count_params(planned)),
            "item_pairs": cooccurrence.release_block(block, planned.mechanisms["cooccurrence"].noise_sd),
        }
        return [commit.write_part([table], name, self.kept.place, attempt) for name, table in drawn.items()]

    def commit(self, attempt: str, granted: list[ledger.Grant], parts: list[str]) -> None:
        """Publishes an attempt, if it may be; then readers look."""
        manifest = {**self.planned.charge(), "reports": {"selection": "", "counts": "", "cooccurrence": ""}}
        with contextlib.suppress(errors.AlreadyReleasedError):
            commit.commit(parts, granted, self.kept.place, self.planned.ledger_url, attempt, manifest)
        self.seen |= {(id_, self.kept.manifest(id_)["attempt"]) for id_ in self.kept.release_ids()}

    @property
    def is_paid_for(self) -> bool:
        """Whether no more draws were seen than charged."""
        charged = self.account.charges(self.planned.job.job.data_set)
        return len(self.seen) <= sum(len(of_period) for of_period in charged.values())


def released_twice(directory: pathlib.Path) -> bool:
    """Whether a job that is run again shows readers a second draw of a window that was charged once."""
    window = _Window(neighbours.write(directory))
    for attempt in ("first", "second"):
        if granted := window.reserve(attempt):
            window.commit(attempt, granted, window.draw(attempt))
    assert window.seen
    return not window.is_paid_for


def both_attempts_seen(directory: pathlib.Path) -> bool:
    """Whether readers see both of two attempts, of which the slower was overtaken after it was granted the window."""
    window = _Window(neighbours.write(directory))
    granted = {attempt: window.reserve(attempt) for attempt in ("slower", "faster")}
    parts = {attempt: window.draw(attempt) for attempt in granted}
    for attempt in ("faster", "slower"):
        window.commit(attempt, granted[attempt], parts[attempt])
    assert window.seen
    return not window.is_paid_for


def model_hangs_on_events(directory: pathlib.Path) -> bool:
    """Whether another model comes of the same release when the events behind it are others."""
    job = neighbours.write(directory)
    window = _Window(job)
    neighbours.put(job, neighbours.CROWD)
    window.commit("only", window.reserve("only"), window.draw("only"))
    found = []
    for lines in (neighbours.CROWD, [*neighbours.CASES[neighbours.EXTREME].does, *neighbours.CROWD]):
        neighbours.put(job, lines)
        model = train.run(job)
        found.append({name: model.read_table(name, schema).to_pylist() for name, schema in MODEL.items()})
    return found[0] != found[1]


MODEL = {"embeddings": tables.EMBEDDINGS, "recommendations": tables.RECOMMENDATIONS}


def manifest_hangs_on_events(directory: pathlib.Path) -> bool:
    """Whether what a manifest says is other for other events, or anything of them goes there round the noise."""
    found = [
        test_guard.of_files(directory / name, events=lines)
        for name, lines in (("one", test_guard.ONE), ("other", test_guard.OTHERS))
    ]
    return test_guard.manifest(found[0]) != test_guard.manifest(found[1]) or bool(graph.bypasses(found[0]))
