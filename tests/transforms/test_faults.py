"""Errors while rows are in hand: what is said of them, and what isn't."""

import traceback

import pytest

from transforms.ingest import faults, sources

ROW = "ann,a,view".upper()  # a traceback shows lines of code, and this text must be in none


def test_an_error_is_said_by_its_kind_and_place_alone():
    with pytest.raises(faults.RowsError, match=r"^events.csv: .*\(ValueError at test_faults.py:\d+, .*\)") as caught:
        decode_with(ROW)
    assert ROW not in "".join(traceback.format_exception(caught.value))


def decode_with(row: str):
    with faults.without_rows("events.csv"):
        take(row)


def take(row: str):
    raise ValueError(f"can't take {row}")


@pytest.mark.parametrize("error", [sources.SourceError("mend it"), KeyboardInterrupt()])
def test_what_the_user_can_mend_or_did_passes(error):
    with pytest.raises(type(error)) as caught, faults.without_rows("events.csv"):
        raise error
    assert caught.value is error
