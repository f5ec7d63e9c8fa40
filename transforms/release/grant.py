"""No noise before its charge is written: the step between counting malformed rows and releasing."""

from collections.abc import Iterator
from typing import Any

import apache_beam as beam

from data import errors, store
from transforms.ingest import decode


def reserve(
    outcomes: dict[str, int],
    store_path: str,
    release_id: str,
    charge: dict[str, Any],
    max_malformed_share: float,
    allow_another: bool,
) -> Iterator[str]:
    """Writes the charge into the ledger and yields the release id; yields nothing when the release is refused.

    The operator's run record says what was read, and why it was refused.
    """
    kept = store.Store(store_path)
    share = decode.malformed_share(outcomes)
    refused, exit_code = None, 0
    if share > max_malformed_share:
        refused = (
            f"{share:.2%} of the rows are malformed, more than source.max_malformed_share = {max_malformed_share:.2%}; "
            "nothing was spent."
        )
        exit_code = errors.RefusedError.exit_code
    else:
        try:
            kept.reserve(release_id, charge, allow_another)
        except errors.AlreadyReleasedError as error:
            refused, exit_code = str(error), error.exit_code
    record = {"outcomes": outcomes, "malformed_share": share, "refused": refused, "exit_code": exit_code}
    kept.write_run_record(release_id, record)
    if not refused:
        yield release_id


class ReserveBudget(beam.PTransform):
    """Asks for a release. In: one tally of outcomes; out: the release id, the grant that every Release... waits for."""

    def __init__(
        self, store_path: str, release_id: str, charge: dict[str, Any], max_malformed_share: float, allow_another: bool
    ):
        super().__init__()
        self._arguments = (store_path, release_id, charge, max_malformed_share, allow_another)

    def expand(self, outcomes: beam.PCollection[dict[str, int]]) -> beam.PCollection[str]:
        return (
            outcomes | "Reserve" >> beam.FlatMap(reserve, *self._arguments).with_output_types(str) | "Fix" >> beam.Reshuffle()
        )
