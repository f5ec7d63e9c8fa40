"""Work on several elements at once inside one worker, for functions that spend most of their time outside Python's lock."""

import collections
from collections.abc import Callable, Iterable, Iterator
from concurrent import futures
from typing import Any, TypeVar

import apache_beam as beam
from apache_beam.transforms.window import WindowedValue

T = TypeVar("T")
R = TypeVar("R")

THREADS = 2
"""More would hold more batches in memory at once."""


def map_ahead(function: Callable[[T], R], inputs: Iterable[T]) -> Iterator[R]:
    """Yields the function's results in order, THREADS of them under way at once: no more are held."""
    ahead: collections.deque[futures.Future[R]] = collections.deque()
    with futures.ThreadPoolExecutor(THREADS) as pool:
        for given in inputs:
            ahead.append(pool.submit(function, given))
            if len(ahead) == THREADS:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


class FlatMapOnThreads(beam.DoFn):
    """Like beam.FlatMap, on THREADS elements of a bundle at once; outputs keep their order, window and time.

    Args:
        function: of one element and of one argument, which `beam.ParDo` gets: a value, or a side input as a list.
    """

    def __init__(self, function: Callable[[Any, Any], Iterable[Any]]):
        self._function = function

    def setup(self) -> None:
        self._pool = futures.ThreadPoolExecutor(THREADS)

    def start_bundle(self) -> None:
        self._ahead: collections.deque[tuple[futures.Future[list[Any]], Any, Any]] = collections.deque()

    def process(
        self, element: Any, argument: Any, time: Any = beam.DoFn.TimestampParam, window: Any = beam.DoFn.WindowParam
    ) -> Iterator[WindowedValue]:
        self._ahead.append((self._pool.submit(lambda: list(self._function(element, argument))), time, window))
        if len(self._ahead) == THREADS:
            yield from self._next()

    def finish_bundle(self) -> Iterator[WindowedValue]:
        while self._ahead:
            yield from self._next()

    def teardown(self) -> None:
        self._pool.shutdown()

    def _next(self) -> Iterator[WindowedValue]:
        results, time, window = self._ahead.popleft()
        for result in results.result():
            yield WindowedValue(result, time, (window,))
