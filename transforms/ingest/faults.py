"""What fails while rows are in hand is said without them: a library's message may quote the row that it can't take."""

import contextlib
import pathlib
import traceback
from collections.abc import Iterator

from data import errors


class RowsError(RuntimeError):
    """Rows couldn't be read or decoded, by a fault of ours. The message says where in the code, and nothing of the rows."""


@contextlib.contextmanager
def without_rows(source: str) -> Iterator[None]:
    """Lets a user's error pass, and makes a RowsError of any other; logs and tracebacks then have no more than that.

    Args:
        source: the file, or the topic's partition, that the rows are of.

    Raises:
        RowsError: what is done within fails.
    """
    try:
        yield
    except errors.UserError:
        raise
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)[1:]
        way = ", ".join(f"{pathlib.Path(frame.filename).name}:{frame.lineno}" for frame in frames)
        raise RowsError(
            f"{source}: its rows can't be decoded ({type(error).__name__} at {way}). This is a fault of Sottovoce: please "
            "report it. What the error says may quote a row, and is left out."
        ) from None
