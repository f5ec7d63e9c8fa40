"""No noise before its charge is written: the step between counting malformed rows and releasing."""

import datetime as dt
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import apache_beam as beam

from data import errors, ledger, store
from transforms.ingest import decode

TAKEN_OVER = "another run has taken this release over; nothing of this one was published."
"""What a run is told whose fence is no longer the release's."""


class Asked(NamedTuple):
    """Whom to ask, for what, and where to say what came of it, what was read (`digests`, by path) and how.

    Attributes:
        started: the run's start.
        is_reading: the run reads the events itself; a stream's were read before.
    """

    ledger_url: str
    request: ledger.Request
    store_path: str
    max_malformed_share: float
    digests: Mapping[str, str]
    started: dt.datetime
    is_reading: bool = True


def reserve(outcomes: dict[str, int], asked: Asked) -> Iterator[ledger.Grant]:
    """Asks the ledger and yields its grant; yields nothing when the release is refused.

    The operator's run record says what was read, and why it was refused.
    """
    share = decode.malformed_share(outcomes)
    refused, exit_code, granted = None, 0, None
    if share > asked.max_malformed_share:
        refused = (
            f"{share:.2%} of the rows are malformed, more than source.max_malformed_share = {asked.max_malformed_share:.2%}; "
            "nothing was spent."
        )
        exit_code = errors.RefusedError.exit_code
    else:
        try:
            granted = ledger.Ledger(asked.ledger_url).reserve(asked.request)
        except (ledger.BudgetRefusedError, errors.AlreadyReleasedError) as error:
            refused, exit_code = str(error), error.exit_code
    if granted and granted.status == ledger.PUBLISHED:
        refused, exit_code, granted = "another run published it meanwhile.", errors.AlreadyReleasedError.exit_code, None
    record = {
        **_nothing_read(asked.request.window_start.isoformat(), asked.request.window_end.isoformat(), asked.started),
        "job": asked.request.job,
        "read_seconds": (dt.datetime.now(dt.UTC) - asked.started).total_seconds() if asked.is_reading else None,
        "source": dict(asked.digests),
        "outcomes": outcomes,
        "malformed_share": share,
        "refused": refused,
        "exit_code": exit_code,
        "release_id": granted.release_id if granted else None,
    }
    store.Store(asked.store_path).write_run_record(asked.request.attempt, record)
    if granted:
        yield granted


def note_refusal(kept: store.Store, name: str, window_start: str, window_end: str, why: str, exit_code: int) -> None:
    """Writes the run record, under a name, of a release that was refused before anything was read."""
    nothing = _nothing_read(window_start, window_end, dt.datetime.now(dt.UTC))
    kept.write_run_record(name, {**nothing, "refused": why, "exit_code": exit_code})


def _nothing_read(window_start: str, window_end: str, started: dt.datetime) -> dict[str, Any]:
    """The run record of a release of which nothing is known yet: its times are text, as in JSON."""
    return {
        "window_start": window_start,
        "window_end": window_end,
        "started": started.isoformat(),
        "read_seconds": None,
        "source": {},
        "outcomes": {},
        "malformed_share": 0.0,
        "refused": None,
        "exit_code": 0,
        "release_id": None,
    }


class ReserveBudget(beam.PTransform):
    """Asks for a release. In: one tally of outcomes; out: the grant that every Release... waits for."""

    def __init__(self, asked: Asked):
        super().__init__()
        self._asked = asked

    def expand(self, outcomes: beam.PCollection[dict[str, int]]) -> beam.PCollection[ledger.Grant]:
        return (
            outcomes
            | "Reserve" >> beam.FlatMap(reserve, self._asked).with_output_types(ledger.Grant)
            | "Fix" >> beam.Reshuffle()
        )
