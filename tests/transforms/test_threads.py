import threading
import time

import apache_beam as beam
import pytest
from apache_beam.testing import util
from apache_beam.transforms import window

from runners import direct
from transforms import threads

together = threading.Barrier(threads.THREADS, timeout=10)


def square(number: int, offset: int = 0) -> int:
    """The earlier, the slower: order must not be that of finishing. Waits for its neighbour, so both must be under way."""
    together.wait()
    time.sleep(0.02 * (number % 2 == 0))
    return number**2 + offset


def test_results_keep_their_order():
    assert list(threads.map_ahead(square, range(4))) == [0, 1, 4, 9]


def test_no_more_inputs_are_taken_than_are_under_way():
    taken = []
    inputs = (taken.append(number) or number for number in range(10))
    first = next(threads.map_ahead(lambda number: number, inputs))
    assert (first, len(taken)) == (0, threads.THREADS)


def test_an_error_reaches_the_caller():
    with pytest.raises(ZeroDivisionError):
        list(threads.map_ahead(lambda number: 1 // number, [1, 0]))


def test_elements_keep_their_windows():
    with beam.Pipeline(options=direct.options([])) as pipeline:
        squares = (
            pipeline
            | beam.Create([window.TimestampedValue(number, 10 * number) for number in range(4)], reshuffle=False)
            | beam.WindowInto(window.FixedWindows(10))
            | beam.ParDo(threads.FlatMapOnThreads(lambda number, offset: [square(number, offset)]), 1)
        )
        stamped = squares | beam.Map(lambda x, w=beam.DoFn.WindowParam, t=beam.DoFn.TimestampParam: (x, int(w.start), int(t)))
        util.assert_that(stamped, util.equal_to([(1, 0, 0), (2, 10, 10), (5, 20, 20), (10, 30, 30)]))
