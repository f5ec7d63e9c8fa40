"""The contract between a data set's users and its jobs: `sottovoce budget init | show | grant | close | history | verify`.

A job only ever asks. What may be spent stands in the ledger, and only `grant` raises it, for all to see.
"""

import dataclasses
import hashlib
import hmac
import json
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from data import book, files, ledger, periods, state, store, vault
from pipelines import config
from transforms.ingest import pseudonym
from transforms.privacy import filter as privacy_filter


def open_ledger(job: config.Job) -> ledger.Ledger:
    """Opens the job's ledger, made or brought up to date where need be.

    Raises:
        ledger.LedgerError: it can't be opened.
    """
    return ledger.Ledger(ledger_url(job))


def ledger_url(job: config.Job) -> str:
    """Returns privacy.ledger, or the default: a file in the user's state directory."""
    return job.privacy.ledger or f"sqlite:///{state.directory() / 'ledger.sqlite'}"


def book_path(job: config.Job) -> files.Name:
    """Returns privacy.book, a path or a URL, or the default: a directory beside the ledger's file."""
    return job.privacy.book or Path(ledger_url(job).partition("sqlite:///")[2] + ".book")


def open_book(job: config.Job) -> book.Book:
    """Opens the job's contribution book.

    Raises:
        vault.VaultError: privacy.encryption_key_file can't be used.
    """
    return book.Book(book_path(job), vault.read(job.privacy.encryption_key_file))


def source_fingerprint(job: config.Job) -> str:
    """Names where events come from, as hex digits."""
    paths = {path if "://" in path else os.path.abspath(path) for path in job.source.paths}  # noqa: PTH100  a pattern stays one
    source: dict[str, Any] = {"kind": job.source.kind, "paths": sorted(paths)}
    if job.source.topic is not None:
        # Not the broker's address, which has many names: a topic's name stands for one source, wherever it lies.
        source["topic"] = job.source.topic
    return hashlib.sha256(json.dumps(source, sort_keys=True).encode()).hexdigest()


def key_fingerprint(key: bytes) -> str:
    """Names a pseudonym key without showing anything of it, as hex digits."""
    return hmac.digest(key, b"sottovoce pseudonym key", hashlib.sha256).hex()


def selection_delta(job: config.Job) -> float:
    """The part of total_delta for items that only one user may have; none of a public catalogue's."""
    return 0.0 if job.catalogue else job.privacy.total_delta * job.selection.delta_share


def contract_of(job: config.Job) -> ledger.Contract:
    """What the job file would have written down."""
    privacy, set_aside = job.privacy, selection_delta(job)
    return ledger.Contract(
        data_set=job.job.data_set,
        unit=privacy.unit,
        period=privacy.period,
        composition=privacy.composition,
        total_epsilon=privacy.total_epsilon,
        total_delta=privacy.total_delta,
        selection_delta=set_aside,
        capacity=privacy_filter.capacity(privacy.composition, privacy.total_epsilon, privacy.total_delta - set_aside),
        source=source_fingerprint(job),
        key_fingerprint=key_fingerprint(pseudonym.read_key(privacy.key_file)),
    )


def init(job: config.Job) -> None:
    """Writes the job's budget down as its data set's contract. The same again changes nothing.

    Raises:
        ledger.BudgetRefusedError: there is another contract, or the source has another name.
    """
    kept, wanted = open_ledger(job), contract_of(job)
    there = kept.contract(wanted.data_set)
    # What was raised since is not taken back.
    raised = ("total_epsilon", "total_delta", "selection_delta", "capacity")
    is_same = there and dataclasses.replace(wanted, **{name: getattr(there, name) for name in raised}) == there
    if not (there and is_same and all(getattr(there, name) >= getattr(wanted, name) for name in raised)):
        kept.init(wanted)


def show(job: config.Job) -> Iterator[str]:
    """Yields lines of what the contract says and what is left of it, in epsilon and in releases like the last one."""
    kept = open_ledger(job)
    contract = kept.known(job.job.data_set)
    yield (
        f"{contract.data_set}: epsilon {contract.total_epsilon:g}, delta {contract.total_delta:g} for each {contract.unit} and "
        f"period ({contract.period}), composition {contract.composition}"
    )
    releases = kept.releases(contract.data_set)
    last = releases[-1]["charge"]["mechanisms"] if releases else []
    cost = _cost(contract.composition, last)
    aside = sum(mechanism["delta"] for mechanism in last)
    series = kept.series(contract.data_set)
    for spent in kept.spent(contract.data_set):
        used = privacy_filter.spent_epsilon(contract.composition, spent.cost, contract.noise_delta)
        left = f"room for {room(contract, spent, cost, aside)} more like the last one"
        if planned := [each for each in series if each["period"] == spent.period]:
            left = ", ".join(
                f"{each['job']} has released {len(each['pages'])} of {each['windows']} planned windows, each user in at most "
                f"{each['max_windows_contributed']} of them"
                for each in planned
            )
        left = "closed" if spent.is_closed else left
        yield f"{spent.period}: {spent.releases} release(s) spent epsilon {used:.4g} of {contract.total_epsilon:g}; {left}"
    if not releases:
        yield "nothing is spent yet"


def room(contract: ledger.Contract, spent: ledger.Spent, cost: float, delta: float) -> int:
    """How many more charges of (cost, delta) a period has room for; 0 for those that cost nothing."""
    rooms = [(contract.capacity - spent.cost) / cost] if cost else []
    rooms += [(contract.selection_delta - spent.delta) / delta] if delta else []
    # A hair against rounding: shares are charged a hair below what they say.
    return max(0, math.floor(min(rooms) + 1e-12)) if rooms else 0


def grant(job: config.Job, total_epsilon: float, total_delta: float | None, why: str) -> None:
    """Raises the contract's totals; who does so says why.

    Raises:
        ledger.BudgetRefusedError: that would not raise them.
        config.JobFileError: a number is out of range.
    """
    kept = open_ledger(job)
    old = kept.known(job.job.data_set)
    delta = old.total_delta if total_delta is None else total_delta
    if not (math.isfinite(total_epsilon) and total_epsilon > 0 and 0 < delta < 1):
        raise config.JobFileError(
            f"budget grant: epsilon must be above 0 and delta in (0, 1), not {total_epsilon} and {delta}."
        )
    # Selection keeps its share of delta.
    aside = old.selection_delta / old.total_delta * delta
    capacity = privacy_filter.capacity(old.composition, total_epsilon, delta - aside)
    kept.grant(old.data_set, total_epsilon, delta, capacity, why, aside)


def close(job: config.Job, period: str) -> None:
    """Closes a period for good.

    Raises:
        config.JobFileError: it is not the name of one.
    """
    kept = open_ledger(job)
    kind = kept.known(job.job.data_set).period
    if not periods.is_name(kind, period):
        raise config.JobFileError(
            f"budget close: {period!r} is not the name of a period ({kind}); `budget show` has such names."
        )
    kept.close(job.job.data_set, period)
    for series in kept.series(job.job.data_set):
        if series["period"] == period:
            open_book(job).delete(series["series_id"])


def history(job: config.Job) -> Iterator[str]:
    """Yields a line for each change, with the hash that the chain has then."""
    for row in open_ledger(job).history(job.job.data_set):
        yield f"{row['number']:>6} {row['at'][:19]} {row['kind']:<9} {row['hash']} {_summary(row['kind'], row['body'])}"


def _summary(kind: str, body: dict[str, Any]) -> str:
    if kind in ("init", "grant"):
        why = f": {body['why']}" if "why" in body else ""
        return f"epsilon {body['total_epsilon']:g}, delta {body['total_delta']:g}{why}"
    if kind == "close":
        return str(body["period"])
    if kind == ledger.REFUSED:
        return str(body["why"])
    if kind == "planned":
        return f"{body['period']}: {body['windows']} windows, each user in at most {body['max_windows_contributed']}"
    return str(body["release"]["release_id"] if kind == ledger.RESERVED else body["release_id"])


def verify(job: config.Job, head: str | None) -> str:
    """Checks the ledger's chain, its charges and the store against it; returns the newest hash, to keep elsewhere.

    Raises:
        ledger.LedgerError: what doesn't agree.
        errors.BadInputError: the store has a release that the ledger doesn't know.
    """
    kept = open_ledger(job)
    newest = kept.verify(head)
    contract, releases = kept.known(job.job.data_set), kept.releases(job.job.data_set)
    expected = privacy_filter.capacity(contract.composition, contract.total_epsilon, contract.noise_delta)
    if contract.capacity > expected * (1 + 1e-9):
        raise ledger.LedgerError(f"{contract.data_set!r}: the contract lets more through than its epsilon and delta.")
    charged = kept.charges(contract.data_set)
    for series in kept.series(contract.data_set):
        unit = (series["cost"] / series["max_windows_contributed"], series["delta"] / series["max_windows_contributed"])
        charged |= {page["release_id"]: [(page["units"] * unit[0], page["units"] * unit[1])] for page in series["pages"]}
        _verify_book(job, series)
    for release in releases:
        mechanisms = release["charge"]["mechanisms"]
        cost = _cost(contract.composition, mechanisms)
        delta = sum(mechanism["delta"] for mechanism in mechanisms)
        if any(
            not math.isclose(cost, was, rel_tol=1e-8) or delta > aside * (1 + 1e-8)
            for was, aside in charged[release["release_id"]]
        ):
            raise ledger.LedgerError(f"release {release['release_id']} was charged for other noise than it says.")
    stored = store.Store(job.job.store)
    stored.check(kept.releases())
    charges = {release["release_id"]: release["charge"] for release in releases}
    for manifest in stored.published(releases):
        if manifest["mechanisms"] != charges[manifest["release_id"]]["mechanisms"]:
            raise ledger.LedgerError(f"release {manifest['release_id']} in {stored.place} says other noise than was charged.")
    return newest


def _verify_book(job: config.Job, series: dict[str, Any]) -> None:
    """Checks a series' newest page, that of a period that isn't closed."""
    booked = [page for page in series["pages"] if page["digest"]]
    if not booked or series["is_closed"]:
        return
    most = series["max_windows_contributed"]
    for spent in open_book(job).spent(series["series_id"], booked[-1]["number"], booked[-1]["digest"]):
        if over := pc.sum(pc.greater(spent["units"], most)).as_py():
            raise ledger.LedgerError(f"the contribution book lets {over} user(s) into more than {most} windows.")


def _cost(composition: privacy_filter.Composition, mechanisms: Sequence[dict[str, Any]]) -> float:
    return privacy_filter.total_cost(composition, (mechanism["noise_multiplier"] for mechanism in mechanisms))
