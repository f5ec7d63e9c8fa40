"""A topic without an end into windows of events: what has closed, and all that was in it.

Each partition is read for ever. Its watermark follows the broker's times less the slack, or our clock where nothing comes; an
event's own time never moves it. A window is handed on once, when every partition has come past its end and slack. Until then
its events wait under the window's last moment, so that Beam itself drops nothing.

What counts is what a bounded read (transforms.ingest.topics) counts: an event is late by its own arrival and its own windows.
"""

import contextlib
import dataclasses
import datetime as dt
import itertools
import json
import logging
import time
import uuid
from collections.abc import Collection, Iterable, Iterator, Sequence
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

from data import letters, store, vault
from transforms import bounding, spill, workers
from transforms.ingest import decode, events, formats, kafka_client, topics

log = logging.getLogger(__name__)

ENDLESS = 2**62
"""The offset at which a partition's range ends."""

_BY_HAND = watermark_estimators.ManualWatermarkEstimator.default_provider()
_READ_SECONDS = 0.5
"""How long one look at a partition lasts where no window closes."""


@dataclasses.dataclass(frozen=True)
class Windows:
    """Windows of one length: k, from 0, is [start + k step, start + k step + size)."""

    start: dt.datetime
    size: dt.timedelta
    step: dt.timedelta

    def end(self, number: int) -> dt.datetime:
        """When a window ends: no two of one length end together."""
        return self.start + number * self.step + self.size

    def count(self, time_: dt.datetime) -> int:
        """How many windows end by a time: the number of the first one that ends later."""
        return max(0, (time_ - self.start - self.size) // self.step + 1)

    def ending(self, end: timestamp.Timestamp) -> int:
        """The window that ends then."""
        return (end.micros - _microseconds(self.end(0))) // _duration(self.step)

    def into(self) -> beam.WindowInto:
        """Beam's windows: as long as a step, each up to the end of one of ours."""
        return beam.WindowInto(window.FixedWindows(self.step.total_seconds(), offset=_timestamp(self.end(0))))


@dataclasses.dataclass(frozen=True)
class Clock:
    """When windows close, of one length or of several.

    Attributes:
        windows: by length, in any order.
        slack: how much later than its window's end an event may arrive.
        settling: how far the broker's clock may be behind ours, and a message's arrival behind its being seen.
    """

    windows: Sequence[Windows]
    slack: dt.timedelta
    settling: dt.timedelta

    def next_close(self, ended: dt.datetime) -> dt.datetime:
        """By when the events must have arrived of the first window that ends after a time."""
        return min(each.end(each.count(ended)) for each in self.windows) + self.slack

    def ended(self, arrival: dt.datetime) -> dt.datetime | None:
        """The end of the last window that is closed to what arrives then; None: there is none."""
        # What arrives at the very close is in time.
        by = arrival - self.slack - dt.timedelta(microseconds=1)
        return max((each.end(count - 1) for each in self.windows if (count := each.count(by))), default=None)


class Partition(NamedTuple):
    """Where the reading of a partition begins; windows that end by `ended` are not wanted."""

    topic: str
    partition: int
    start: int
    ended: dt.datetime

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


def find_closed(directory: Path, length: int, number: int) -> Closed | None:
    """Returns what a stream has written down of a window, by the place of its length and its number; None: it is open."""
    path = _closed(directory, length, number)
    if not path.exists():
        return None
    closed = Closed(**json.loads(path.read_text()))
    return closed._replace(parts=[spill.Part(*part) for part in closed.parts])


def count_closed(directory: Path) -> int:
    """How many windows a stream has written down, of all lengths."""
    return sum(1 for _ in directory.glob("closed/*/[!.]*.json"))


def _closed(directory: Path, length: int, number: int) -> Path:
    return directory / "closed" / str(length) / f"{number}.json"


def split(rows: pa.Table, windows: Windows, slack: dt.timedelta, first_open: int) -> tuple[dict[int, pa.Table], np.ndarray]:
    """Splits events by window: number -> its rows; and which rows are late for every window that they fit.

    Args:
        rows: with event_time and arrival_time.
        slack: as Clock has it.
        first_open: windows before have closed.
    """
    if not rows.num_rows:
        return {}, np.zeros(0, bool)
    happened, arrived = (
        rows[name].cast(pa.int64()).to_numpy() - _microseconds(windows.start) for name in ("event_time", "arrival_time")
    )
    step, size = _duration(windows.step), _duration(windows.size)
    newest = happened // step
    # Before the first window of this length there may be longer ones.
    is_in_any = happened < 0
    found: dict[int, list[pa.Table]] = {}
    for number in [newest - back for back in range(-(-size // step))]:
        end = number * step + size
        is_in = (number >= first_open) & (happened < end) & (arrived <= end + _duration(slack))
        is_in_any |= is_in
        for each in np.unique(number[is_in]).tolist():
            found.setdefault(each, []).append(rows.filter(pa.array(is_in & (number == each))))
    return {number: pa.concat_tables(parts) for number, parts in found.items()}, ~is_in_any


class ReadTopicForever(events.DecodeBatches, beam.RestrictionProvider):
    """Reads a Partition for ever and decodes it. Out, for each length of windows: events of a window, under its last moment,
    and reports.

    Args:
        connection: to the broker.
        form: of the messages' values.
        decoding: what decode.Decoder takes, with topics.ARRIVAL, and maybe KEY, among its rules' columns.
        clock: the windows that events are in, by length; the first have the dead letters.
        seen_until: for each length, what arrived by then was reported before this stream began.
        directory: for dead letters.
        allow_create_time: as topics.ranges.
        keys: by which dead letters are encrypted.
    """

    def __init__(
        self,
        connection: kafka_client.Connection,
        form: formats.Format,
        decoding: events.Decoding,
        clock: Clock,
        seen_until: Sequence[dt.datetime | None],
        directory: str,
        allow_create_time: bool,
        keys: vault.Vault,
    ):
        super().__init__(decoding)
        self.clock, self._keys = clock, keys
        self._connection, self._form = connection, form
        self._seen_until = [0 if seen is None else topics.milliseconds(seen) for seen in seen_until]
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
        start, so_far = tracker.current_restriction().start, watermark.current_watermark()
        ended = element.ended if so_far is None else so_far.to_utc_datetime(has_tz=True)
        read = self._read(place, start, ended)
        if read.position > start and not tracker.try_claim(read.position - 1):
            return
        if read.records or read.position > start:
            yield from self._outputs(element, read, ended)
        if read.ended > ended:
            for length, windows in enumerate(self.clock.windows):
                for number in range(windows.count(ended), windows.count(read.ended)):
                    yield self._report(length, number, Report(element.path, read.position, {}, None))
            watermark.set_watermark(_timestamp(read.ended))
        tracker.defer_remainder(timestamp.Duration(0))

    def _read(self, place: kafka.TopicPartition, start: int, ended: dt.datetime) -> "_Read":
        """Reads for a while: to the first message that came too late for the next window to end, if there is one."""
        client, clock = self._client(place, start), self.clock
        close = topics.milliseconds(clock.next_close(ended))
        records: list[Any] = []
        n_bytes, until = 0, time.monotonic() + _READ_SECONDS
        while time.monotonic() < until and len(records) < topics.BATCH_ROWS and n_bytes < topics.BATCH_BYTES:
            asked = dt.datetime.now(dt.UTC)
            polled = client.poll(timeout_ms=topics.POLL_MS, max_records=topics.POLL_ROWS).get(place, [])
            for index, record in enumerate(polled):
                if record.timestamp > close:
                    client.seek(place, record.offset)
                    closed = clock.ended(topics.time_of(record.timestamp)) or ended
                    return _Read([*records, *polled[:index]], record.offset, closed)
            records += polled
            n_bytes += sum(max(record.serialized_value_size, 0) for record in polled)
            if not polled and not self._allow_create_time and topics.milliseconds(asked - clock.settling) > close:
                # It must have been asked: a broker that is away has messages that came in time.
                try:
                    end = client.end_offsets([place], timeout_ms=kafka_client.TIMEOUT_SECONDS * 1000)[place]
                except kafka.errors.KafkaError as error:
                    log.warning("%s/%d: waiting for the broker (%s)", *place, type(error).__name__)
                    continue
                if client.position(place) >= end:
                    return _Read(records, client.position(place), clock.ended(asked - clock.settling) or ended)
        return _Read(records, client.position(place), ended)

    def _client(self, place: kafka.TopicPartition, start: int) -> kafka.KafkaConsumer:
        if place not in self._client_of:
            client = self._clients.enter_context(kafka_client.consumer(self._connection, **topics.FETCH))
            client.assign([place])
            self._client_of[place] = client
        client = self._client_of[place]
        if client.position(place) != start:
            client.seek(place, start)
        return client

    def _outputs(self, element: Partition, read: "_Read", ended: dt.datetime) -> Iterator[Any]:
        """The events by window, and for each length a report to the first open one."""
        lengths = list(enumerate(self.clock.windows))
        outcomes: list[dict[str, int]] = [{} for _ in lengths]
        letters: list[str] = []
        for records in self._parts(read.records):
            topics.check_times(element.topic, records, self._allow_create_time)
            batch = topics.rows(records, self._form, topics.KEY in self.decoding.rules.source_columns)
            decoded = self._decoders[0].decode(element.path, batch)
            for length, windows in lengths:
                by_window, late = split(decoded.events, windows, self.clock.slack, windows.count(ended))
                for number, rows in by_window.items():
                    yield self._under(_events(length), length, number, rows)
                if records[0].timestamp <= self._seen_until[length]:
                    continue
                n_late = int(late.sum())
                found = [outcomes[length], decoded.outcomes, {decode.OK: -n_late, decode.LATE: n_late}]
                outcomes[length] = decode.add_outcomes(found)
                if length == 0:
                    letters += self._letters(element.path, batch, decoded, late)
        for length, windows in lengths:
            kept = self._kept(letters) if length == 0 else None
            yield self._report(length, windows.count(ended), Report(element.path, read.position, outcomes[length], kept))

    def _letters(self, path: str, batch: pa.Table, decoded: decode.Decoded, late: np.ndarray) -> Iterator[str]:
        """The dead rows of a batch and, where they are kept, the late ones."""
        yield from _signed(topics.letters(batch, decoded.dead_letters), decoded.authors)
        if self.decoding.keeps_late:
            rows, authors = (each.filter(pa.array(late)) for each in (decoded.rows, decoded.events["privacy_id"]))
            yield from _signed(topics.letters(batch, decode.late_letters(path, rows)), authors)

    def _parts(self, records: list[Any]) -> Iterator[list[Any]]:
        """Cuts records, which are in the order of their times, where what was reported before ends."""
        cuts = [
            next((i for i, record in enumerate(records) if record.timestamp > seen), len(records)) for seen in self._seen_until
        ]
        for start, stop in itertools.pairwise(sorted({0, *cuts, len(records)})):
            yield records[start:stop]

    def _kept(self, letters: list[str]) -> str | None:
        if not letters:
            return None
        path = Path(self._directory) / f"{uuid.uuid4().hex}.letters"
        path.touch(mode=0o600)
        path.write_text("".join(f"{self._keys.seal_line(letter)}\n" for letter in letters))
        return str(path)

    def _under(self, tag: str, length: int, number: int, value: Any) -> beam.pvalue.TaggedOutput:
        end = _timestamp(self.clock.windows[length].end(number))
        return beam.pvalue.TaggedOutput(tag, window.TimestampedValue(value, end - timestamp.Duration(micros=1000)))

    def _report(self, length: int, number: int, report: Report) -> beam.pvalue.TaggedOutput:
        return self._under(_reports(length), length, number, report)


class _Read(NamedTuple):
    """Records, the offset after them, and the end of the last window that is closed to what comes next."""

    records: list[Any]
    position: int
    ended: dt.datetime


class CloseWindow(beam.DoFn):
    """Writes down what a window holds, once: DIRECTORY/closed/LENGTH/NUMBER.json. In: number and its parts and reports."""

    def __init__(self, directory: str, length: int):
        self._directory, self._length = directory, length

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
        store.create(_closed(Path(self._directory), self._length, number), json.dumps(closed._asdict()).encode())
        yield number


class StreamWindows(beam.PTransform):
    """Reads a topic's partitions for ever. In: a pipeline; out: the numbers of windows that are closed and written down, of
    all lengths.

    Args:
        partitions: of the topic.
        reader: of one.
        group: by user; its directory is where closed windows are written down too.
        readers: in how many workers partitions are read.
    """

    def __init__(
        self, partitions: Sequence[Partition], reader: ReadTopicForever, group: bounding.GroupByUser, readers: int = 1
    ):
        super().__init__()
        if group.directory is None:
            raise ValueError("StreamWindows: the group needs a directory: closed windows outlive the stream.")
        self._partitions, self._reader, self._group, self._readers = partitions, reader, group, readers

    def expand(self, root: beam.pvalue.PBegin) -> beam.PCollection[int]:
        read = [
            root
            | f"Read{i}"
            >> workers.run_in(i, _ReadPartitions(self._partitions[i :: self._readers], self._reader, self._group.split()))
            for i in range(self._readers)
        ]
        closed = (
            tuple(each[length] for each in read) | f"CloseWindows{length}" >> _CloseWindows(length, windows, self._group)
            for length, windows in enumerate(self._reader.clock.windows)
        )
        return tuple(closed) | "Flatten" >> beam.Flatten()


class _ReadPartitions(beam.PTransform):
    """Reads some of the partitions. Out: for each length of windows two PCollections, events by bucket of users and reports."""

    def __init__(self, partitions: Sequence[Partition], reader: ReadTopicForever, split: beam.PTransform):
        super().__init__()
        self._partitions, self._reader, self._split = partitions, reader, split

    def expand(self, root: beam.pvalue.PBegin) -> Any:
        windows = self._reader.clock.windows
        tags = [tag(length) for length in range(len(windows)) for tag in (_events, _reports)]
        read = (
            root
            | "Partitions" >> beam.Create(self._partitions, reshuffle=True)
            | "ReadTopic" >> beam.ParDo(self._reader).with_outputs(*tags)
        )
        return [
            (
                read[_events(length)] | f"Windows{length}" >> each.into() | f"Split{length}" >> self._split,
                read[_reports(length)] | f"WindowsOfReports{length}" >> each.into(),
            )
            for length, each in enumerate(windows)
        ]


class _CloseWindows(beam.PTransform):
    """Groups what is read by user and by window. In: pairs as _ReadPartitions has them; out: the numbers of closed windows."""

    def __init__(self, length: int, windows: Windows, group: bounding.GroupByUser):
        super().__init__()
        self._length, self._windows, self._group = length, windows, group

    def expand(self, read: Sequence[Any]) -> beam.PCollection[int]:
        windows, (parts, reports) = self._windows, zip(*read, strict=True)

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
            | "CloseWindow" >> beam.ParDo(CloseWindow(str(self._group.directory), self._length)).with_output_types(int)
        )


def _signed(letters: Iterable[str], authors: pa.Array) -> Iterator[str]:
    """Letters as they wait for their window: each after the pseudonym, in hex digits, of whoever it names, and a space."""
    return (
        f"{'' if author is None else author.hex()} {letter}"
        for letter, author in zip(letters, authors.to_pylist(), strict=True)
    )


def letters_without(path: str, left_out: Collection[str], keys: vault.Vault) -> Iterator[str]:
    """Yields the letters of such a file, but for those of these pseudonyms.

    Raises:
        vault.VaultError: as data.letters.read.
    """
    for signed in letters.read(path, keys):
        author, _, letter = signed.partition(" ")
        if author not in left_out:
            yield letter


def _events(length: int) -> str:
    """The tag of events in windows of a length."""
    return f"events{length}"


def _reports(length: int) -> str:
    return f"reports{length}"


def _timestamp(time_: dt.datetime) -> timestamp.Timestamp:
    return timestamp.Timestamp(micros=_microseconds(time_))


def _microseconds(time_: dt.datetime) -> int:
    return (time_ - dt.datetime(1970, 1, 1, tzinfo=dt.UTC)) // dt.timedelta(microseconds=1)


def _duration(duration: dt.timedelta) -> int:
    """In microseconds."""
    return duration // dt.timedelta(microseconds=1)
