"""A stream for tests: a source that counts for ever, windows, and a sink of one file a window.

usage: python -m tests.runners.counting DIRECTORY OUT [FLAG...] (a job that runs until it is killed)
"""

import json
import os
import sys
import time
from pathlib import Path

import apache_beam as beam
from apache_beam import window
from apache_beam.io import restriction_trackers, watermark_estimators
from apache_beam.transforms import core
from apache_beam.utils import timestamp

WINDOW = 10
"""Seconds; number n of the source has the event time n seconds, so that a window holds so many numbers too."""
STEP = 20
"""How many numbers one poll emits."""
START = 1_700_000_000
_POLL_SECONDS = 2
_FOR_EVER = 2**62


class Tracker(restriction_trackers.OffsetRestrictionTracker):
    """Where a source that has no end is; Flink may stop it between two numbers, and may not split it."""

    def try_split(self, fraction_of_remainder):
        return None if fraction_of_remainder > 0 else super().try_split(fraction_of_remainder)

    def is_bounded(self):
        return False


TRACKER = core.DoFn.RestrictionParam()
WATERMARK = core.DoFn.WatermarkEstimatorParam(watermark_estimators.ManualWatermarkEstimator.default_provider())


class Count(beam.DoFn, beam.RestrictionProvider):
    """In: a directory; out: (key, number), 20 numbers every two seconds. Writes down where each poll started."""

    def initial_restriction(self, element):
        return restriction_trackers.OffsetRange(0, _FOR_EVER)

    def create_tracker(self, restriction):
        return Tracker(restriction)

    def restriction_size(self, element, restriction):
        return 1.0

    def truncate(self, element, restriction):
        return None

    @beam.DoFn.unbounded_per_element()
    def process(
        self,
        out: str,
        tracker=TRACKER,
        watermark=WATERMARK,
    ):
        first = tracker.current_restriction().start
        with (Path(out) / "polls").open("a") as file:
            file.write(f"{first} {time.time()}\n")
        for number in range(first, first + STEP):
            if not tracker.try_claim(number):
                return
            yield window.TimestampedValue(("all", number), timestamp.Timestamp(START + number))
        watermark.set_watermark(timestamp.Timestamp(START + first + STEP))
        tracker.defer_remainder(timestamp.Duration(_POLL_SECONDS))


class FailOnce(beam.DoFn):
    """Raises for one number, the first time, or ends its process."""

    def __init__(self, out: str, number: int, signal: int | None):
        self._failed, self._number, self._signal = Path(out) / "failed", number, signal

    def process(self, element):
        if element[1] == self._number and not self._failed.exists():
            self._failed.touch()
            if self._signal is not None:
                os.kill(os.getpid(), self._signal)
            raise ValueError("this once")
        yield element


class Write(beam.DoFn):
    """Writes a window into the file of its name, whole or not at all, and notes each write.

    It has two side inputs: how many numbers the window has, and how many it should have. Else it writes none.
    """

    def __init__(self, out: str):
        self._out = Path(out)

    def process(self, element, size, width, span=beam.DoFn.WindowParam):
        _, numbers = element
        if not len(numbers) == size == width:
            numbers = []
        index = (int(span.start) - START) // WINDOW
        (self._out / f".{index}").write_text(json.dumps(sorted(numbers)))
        (self._out / f".{index}").rename(self._out / f"{index}.json")
        with (self._out / "writes").open("a") as file:
            file.write(f"{index} {time.time()}\n")


def build(root: beam.Pipeline, out: Path, fail_at: int = -1, signal: int | None = None) -> None:
    windowed = (
        root
        | "Start" >> beam.Create([str(out)])
        | "Count" >> beam.ParDo(Count()).with_output_types(tuple[str, int])
        | "FailOnce" >> beam.ParDo(FailOnce(str(out), fail_at, signal)).with_output_types(tuple[str, int])
        | "Windows" >> beam.WindowInto(window.FixedWindows(WINDOW))
    )
    size = windowed | "Ones" >> beam.Map(lambda _: 1) | "Size" >> beam.CombineGlobally(sum).without_defaults()
    width = root | "Width" >> beam.Create([WINDOW])
    (
        windowed
        | "Group" >> beam.GroupByKey()
        | "Write" >> beam.ParDo(Write(str(out)), beam.pvalue.AsSingleton(size), beam.pvalue.AsSingleton(width))
    )


def noted(out: Path, name: str) -> list[tuple[int, float]]:
    """The notes "polls" and "writes": a number and when."""
    lines = (out / name).read_text().splitlines() if (out / name).exists() else []
    return [(int(number), float(seconds)) for number, seconds in map(str.split, lines)]


def windows(out: Path) -> dict[int, list[int]]:
    return {int(path.stem): json.loads(path.read_text()) for path in out.glob("*.json")}


if __name__ == "__main__":
    from runners import flink

    directory, out = map(Path, sys.argv[1:3])
    root = beam.Pipeline(options=flink.options(sys.argv[3:], streaming=True, checkpoint_seconds=1, directory=directory))
    build(root, out)
    result = root.run()
    print(os.getpid(), flush=True)
    result.wait_until_finish()
