"""A topic without an end into windows of events: what has closed, and all that was in it.

Each partition is read for ever. Its watermark follows the broker's times less the slack, or our clock where nothing comes; an
event's own time never moves it. A window is handed on once, when every partition has come past its end and slack. Until then
its events wait under the window's last moment, so that Beam itself drops nothing.

What counts is what a bounded read (transforms.ingest.topics) counts: an event is late by its own arrival and its own windows.
"""

import contextlib
import dataclasses
import datetime as dt
import json
import logging
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import apache_beam as beam
import kafka
import kafka.errors
import numpy as np
import pyarrow as pa
from apache_beam.io import restriction_trackers, watermark_estimators
from apache_beam.transforms import window
from apache_beam.utils import timestamp

from data import store
from transforms import bounding, spill, workers
from transforms.ingest import decode, events, formats, kafka_client, topics

log = logging.getLogger(__name__)

ENDLESS = 2**62
"""The offset at which a partition's range ends."""

_REPORTS = "reports"
_BY_HAND = watermark_estimators.ManualWatermarkEstimator.default_provider()
_READ_SECONDS = 0.5
"""How long one look at a partition lasts where no window closes."""


@dataclasses.dataclass(frozen=True)
class Windows:
    """Window k, from 0, is [start + k step, start + k step + size).

    Attributes:
        slack: how much later than its window's end an event may arrive.
        settling: how far the broker's clock may be behind ours, and a message's arrival behind its being seen.
    """

    start: dt.datetime
    size: dt.timedelta
    step: dt.timedelta
    slack: dt.timedelta
    settling: dt.timedelta

    def close(self, number: int) -> dt.datetime:
        """By when a window's events must have arrived."""
        return self.start + number * self.step + self.size + self.slack

    def open_at(self, number: int, arrival: dt.datetime) -> int:
        """The first window, from `number` on, that is open to what arrives then."""
        # Rounded up: what arrives at the very close is in time.
        closed = -((self.close(number) - arrival) // self.step)
        return number + max(0, closed)

    def end_of(self, number: int) -> timestamp.Timestamp:
        """When a window ends: no two end together."""
        return timestamp.Timestamp(micros=_microseconds(self.start + number * self.step + self.size))

    def ending(self, end: timestamp.Timestamp) -> int:
        """The window that ends then."""
        return (end.micros - self.end_of(0).micros) // _duration(self.step)

    def into(self) -> beam.WindowInto:
        """Beam's windows: as long as a step, each up to the end of one of ours."""
        return beam.WindowInto(window.FixedWindows(self.step.total_seconds(), offset=self.end_of(0)))


class Partition(NamedTuple):
    """Where the reading of a partition begins, and the first window that is still open."""

    topic: str
    partition: int
    start: int
    number: int

    @property
    def path(self) -> str:
        """What dead letters and the log call it."""
        return f"{self.topic}/{self.partition}"


class Report(NamedTuple):
    """How far a partition was read, and what became of the messages since the report before; `letters`: a file of dead ones."""

    path: str
    read: int
    outcomes: dict[str, int]
    letters: str | None


class Closed(NamedTuple):
    """What a window that every partition has come past holds.

    Attributes:
        parts: its CONTRIBUTIONS, where they lie, a bucket each.
        read: by topic/partition, how far it was read.
        outcomes: what became of the messages since the window before.
        letters: files of those that are dead.
    """

    parts: list[spill.Part]
    read: dict[str, int]
    outcomes: dict[str, int]
    letters: list[str]


def find_closed(directory: Path, number: int) -> Closed | None:
    """Returns what a stream has written down of a window; None: it is open."""
    path = _closed(directory, number)
    if not path.exists():
        return None
    closed = Closed(**json.loads(path.read_text()))
    return closed._replace(parts=[spill.Part(*part) for part in closed.parts])


def _closed(directory: Path, number: int) -> Path:
    return directory / "closed" / f"{number}.json"


def split(rows: pa.Table, windows: Windows, first_open: int) -> tuple[dict[int, pa.Table], int]:
    """Splits events by window: number -> its rows; and how many rows are late for every window that they fit.

    Args:
        rows: with event_time and arrival_time.
        first_open: windows before have closed.
    """
    if not rows.num_rows:
        return {}, 0
    happened, arrived = (
        rows[name].cast(pa.int64()).to_numpy() - _microseconds(windows.start) for name in ("event_time", "arrival_time")
    )
    step, size, slack = _duration(windows.step), _duration(windows.size), _duration(windows.slack)
    newest = happened // step
    is_in_any = np.zeros(rows.num_rows, bool)
    found: dict[int, list[pa.Table]] = {}
    for number in [newest - back for back in range(-(-size // step))]:
        end = number * step + size
        is_in = (number >= first_open) & (happened < end) & (arrived <= end + slack)
        is_in_any |= is_in
        for each in np.unique(number[is_in]).tolist():
            found.setdefault(each, []).append(rows.filter(pa.array(is_in & (number == each))))
    return {number: pa.concat_tables(parts) for number, parts in found.items()}, int((~is_in_any).sum())


class ReadTopicForever(events.DecodeBatches, beam.RestrictionProvider):
    """Reads a Partition for ever and decodes it. Out: a window's events, under its last moment; reports by window aside.

    Args:
        connection: to the broker.
        form: of the messages' values.
        decoding: what decode.Decoder takes, with topics.ARRIVAL, and maybe KEY, among its rules' columns.
        windows: that events are in.
        seen_until: what arrived by then was reported before this stream began.
        directory: for dead letters.
        allow_create_time: as topics.ranges.
    """

    def __init__(
        self,
        connection: kafka_client.Connection,
        form: formats.Format,
        decoding: events.Decoding,
        windows: Windows,
        seen_until: dt.datetime | None,
        directory: str,
        allow_create_time: bool,
    ):
        super().__init__(decoding)
        self._connection, self._form, self._windows, self._seen_until = connection, form, windows, seen_until
        self._directory, self._allow_create_time = directory, allow_create_time

    def setup(self) -> None:
        super().setup()
        self._clients = contextlib.ExitStack()
        self._client_of: dict[kafka.TopicPartition, kafka.KafkaConsumer] = {}

    def teardown(self) -> None:
        self._clients.close()

    def initial_restriction(self, element: Partition) -> restriction_trackers.OffsetRange:
        return restriction_trackers.OffsetRange(element.start, ENDLESS)

    def create_tracker(self, restriction: restriction_trackers.OffsetRange) -> topics.Tracker:
        return topics.Tracker(restriction)

    def restriction_size(self, element: Partition, restriction: restriction_trackers.OffsetRange) -> float:
        return 1.0

    def truncate(self, element: Partition, restriction: restriction_trackers.OffsetRange) -> None:
        return None

    @beam.DoFn.unbounded_per_element()
    def process(
        self,
        element: Partition,
        tracker: Any = beam.DoFn.RestrictionParam(),  # noqa: B008  Beam's way
        watermark: Any = beam.DoFn.WatermarkEstimatorParam(_BY_HAND),  # noqa: B008
    ) -> Iterator[Any]:
        place = kafka.TopicPartition(element.topic, element.partition)
        start, windows = tracker.current_restriction().start, self._windows
        so_far = watermark.current_watermark()
        first_open = element.number if so_far is None else windows.ending(so_far) + 1
        read = self._read(place, start, first_open)
        if read.position > start and not tracker.try_claim(read.position - 1):
            return
        if read.records or read.position > start:
            yield from self._outputs(element, read, first_open)
        if read.open > first_open:
            for number in range(first_open, read.open):
                yield self._report(number, Report(element.path, read.position, {}, None))
            watermark.set_watermark(windows.end_of(read.open - 1))
        tracker.defer_remainder(timestamp.Duration(0))

    def _read(self, place: kafka.TopicPartition, start: int, first_open: int) -> "_Read":
        """Reads for a while: to the first message that came too late for the first open window, if there is one."""
        client, windows = self._client(place, start), self._windows
        close = topics.milliseconds(windows.close(first_open))
        records: list[Any] = []
        n_bytes, until = 0, time.monotonic() + _READ_SECONDS
        while time.monotonic() < until and len(records) < topics.BATCH_ROWS and n_bytes < topics.BATCH_BYTES:
            asked = dt.datetime.now(dt.UTC)
            polled = client.poll(timeout_ms=topics.POLL_MS, max_records=topics.POLL_ROWS).get(place, [])
            for index, record in enumerate(polled):
                if record.timestamp > close:
                    client.seek(place, record.offset)
                    return _Read(
                        [*records, *polled[:index]],
                        record.offset,
                        windows.open_at(first_open, topics.time_of(record.timestamp)),
                    )
            records += polled
            n_bytes += sum(max(record.serialized_value_size, 0) for record in polled)
            if not polled and not self._allow_create_time and topics.milliseconds(asked - windows.settling) > close:
                # It must have been asked: a broker that is away has messages that came in time.
                try:
                    end = client.end_offsets([place], timeout_ms=kafka_client.TIMEOUT_SECONDS * 1000)[place]
                except kafka.errors.KafkaError as error:
                    log.warning("%s/%d: waiting for the broker (%s)", *place, type(error).__name__)
                    continue
                if client.position(place) >= end:
                    return _Read(records, client.position(place), windows.open_at(first_open, asked - windows.settling))
        return _Read(records, client.position(place), first_open)

    def _client(self, place: kafka.TopicPartition, start: int) -> kafka.KafkaConsumer:
        if place not in self._client_of:
            client = self._clients.enter_context(kafka_client.consumer(self._connection, **topics.FETCH))
            client.assign([place])
            self._client_of[place] = client
        client = self._client_of[place]
        if client.position(place) != start:
            client.seek(place, start)
        return client

    def _outputs(self, element: Partition, read: "_Read", first_open: int) -> Iterator[Any]:
        """The events by window, and a report to the first open one."""
        seen = 0 if self._seen_until is None else topics.milliseconds(self._seen_until)
        new = next((i for i, record in enumerate(read.records) if record.timestamp > seen), len(read.records))
        outcomes: dict[str, int] = {}
        letters: list[str] = []
        for records, is_new in ((read.records[:new], False), (read.records[new:], True)):
            if not records:
                continue
            topics.check_times(element.topic, records, self._allow_create_time)
            batch = topics.rows(records, self._form, topics.KEY in self.decoding.rules.source_columns)
            decoded = self._decoders[0].decode(element.path, batch)
            by_window, late = split(decoded.events, self._windows, first_open)
            for number, rows in by_window.items():
                yield self._under(number, rows)
            if is_new:
                outcomes = decode.add_outcomes([decoded.outcomes, {decode.OK: -late, decode.LATE: late}])
                letters = list(topics.letters(batch, decoded.dead_letters))
        yield self._report(first_open, Report(element.path, read.position, outcomes, self._kept(letters)))

    def _kept(self, letters: list[str]) -> str | None:
        if not letters:
            return None
        path = Path(self._directory) / f"{uuid.uuid4().hex}.letters"
        path.touch(mode=0o600)
        path.write_text("".join(f"{letter}\n" for letter in letters))
        return str(path)

    def _under(self, number: int, value: Any) -> window.TimestampedValue:
        return window.TimestampedValue(value, self._windows.end_of(number) - timestamp.Duration(micros=1000))

    def _report(self, number: int, report: Report) -> beam.pvalue.TaggedOutput:
        return beam.pvalue.TaggedOutput(_REPORTS, self._under(number, report))


class _Read(NamedTuple):
    """Records, the offset after them, and the first window that is open to what comes next."""

    records: list[Any]
    position: int
    open: int


class CloseWindow(beam.DoFn):
    """Writes down what a window holds, once: DIRECTORY/closed/NUMBER.json. In: number and its parts and reports."""

    def __init__(self, directory: str):
        self._directory = directory

    def process(self, element: tuple[int, Iterable[spill.Part | Report]]) -> Iterator[int]:
        number, given = element
        reports = [each for each in given if isinstance(each, Report)]
        parts = sorted(each for each in given if isinstance(each, spill.Part))
        read: dict[str, int] = {}
        for report in reports:
            read[report.path] = max(report.read, read.get(report.path, 0))
        outcomes = decode.add_outcomes(report.outcomes for report in reports)
        letters = sorted(report.letters for report in reports if report.letters)
        closed = Closed(parts, read, outcomes, letters)
        store.create(_closed(Path(self._directory), number), json.dumps(closed._asdict()).encode())
        yield number


class StreamWindows(beam.PTransform):
    """Reads a topic's partitions for ever. In: a pipeline; out: the numbers of windows that are closed and written down.

    Args:
        partitions: of the topic.
        reader: of one.
        windows: that events are in.
        group: by user; its directory is where closed windows are written down too.
        readers: in how many workers partitions are read.
    """

    def __init__(
        self,
        partitions: Sequence[Partition],
        reader: ReadTopicForever,
        windows: Windows,
        group: bounding.GroupByUser,
        readers: int = 1,
    ):
        super().__init__()
        if group.directory is None:
            raise ValueError("StreamWindows: the group needs a directory: closed windows outlive the stream.")
        self._partitions, self._reader, self._windows, self._group = partitions, reader, windows, group
        self._readers = readers

    def expand(self, root: beam.pvalue.PBegin) -> beam.PCollection[int]:
        windows = self._windows
        split = self._group.split()
        read = [
            root
            | f"Read{i}"
            >> workers.run_in(i, _ReadPartitions(self._partitions[i :: self._readers], self._reader, windows, split))
            for i in range(self._readers)
        ]
        parts, reports = zip(*read, strict=True)

        def numbered(given: Any, of: Any = beam.DoFn.WindowParam) -> tuple[int, Any]:
            return windows.ending(of.end), given

        users = parts | "Parts" >> beam.Flatten() | "GroupByUser" >> self._group.merge()
        both: Any = tuple[int, Any]
        return (
            (
                users | "PartsByWindow" >> beam.Map(numbered).with_output_types(both),
                reports | "Reports" >> beam.Flatten() | "ReportsByWindow" >> beam.Map(numbered).with_output_types(both),
            )
            | "Flatten" >> beam.Flatten()
            | "GroupByWindow" >> beam.GroupByKey()
            | "CloseWindow" >> beam.ParDo(CloseWindow(str(self._group.directory))).with_output_types(int)
        )


class _ReadPartitions(beam.PTransform):
    """Reads some of the partitions; out: two PCollections, events by bucket of users and reports."""

    def __init__(self, partitions: Sequence[Partition], reader: ReadTopicForever, windows: Windows, split: beam.PTransform):
        super().__init__()
        self._partitions, self._reader, self._windows, self._split = partitions, reader, windows, split

    def expand(self, root: beam.pvalue.PBegin) -> Any:
        read = (
            root
            | "Partitions" >> beam.Create(self._partitions, reshuffle=True)
            | "ReadTopic" >> beam.ParDo(self._reader).with_outputs(_REPORTS, main="events")
        )
        return (
            read["events"] | "Windows" >> self._windows.into() | self._split,
            read[_REPORTS] | "WindowsOfReports" >> self._windows.into(),
        )


def _microseconds(time_: dt.datetime) -> int:
    return (time_ - dt.datetime(1970, 1, 1, tzinfo=dt.UTC)) // dt.timedelta(microseconds=1)


def _duration(duration: dt.timedelta) -> int:
    """In microseconds."""
    return duration // dt.timedelta(microseconds=1)
