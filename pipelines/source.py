"""Where a job's events come from: what is to be read, and the step that reads it."""

import datetime as dt
import logging
import stat
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import apache_beam as beam
import pyarrow as pa

from data import catalogue, files, ledger, store, vault
from pipelines import config, sections
from transforms import bounding, spill
from transforms.ingest import (
    consent,
    dead_letters,
    decode,
    events,
    formats,
    items,
    kafka_client,
    pseudonym,
    sources,
    stream,
    topics,
)

log = logging.getLogger(__name__)


class Read(NamedTuple):
    """What a source gives to a release.

    Attributes:
        grouped: CONTRIBUTIONS by bucket.
        users: the same without those who have opted out since.
        outcomes: one tally.
        dead_letters: as JSON lines.
    """

    grouped: beam.PCollection[pa.Table | spill.Part]
    users: beam.PCollection[pa.Table | spill.Part]
    outcomes: beam.PCollection[dict[str, int]]
    dead_letters: beam.PCollection[str]


class Source(NamedTuple):
    """Events to be read.

    Attributes:
        parts: each read by one worker, with `reader`.
        rows: how many, or a guess.
        digests: what it is: each file's SHA-256, or a topic's offsets. The operator's.
    """

    parts: Sequence[Any]
    reader: events.DecodeBatches
    rows: int
    digests: dict[str, str]

    @property
    def key(self) -> bytes:
        """Of the pseudonyms."""
        return self.reader.decoding.key

    def read(self, root: beam.Pipeline, group: bounding.GroupByUser) -> Read:
        """Reads the events and groups them by user."""
        ingested = root | "IngestEvents" >> events.IngestEvents(self.parts, self.reader)
        users = ingested.events | "GroupByUser" >> group
        return Read(users, users, ingested.outcomes, ingested.dead_letters)


class ClosedWindow(NamedTuple):
    """A window that a stream has read and grouped; as Source, but for the opt-outs, which came meanwhile.

    Attributes:
        keys: by which its dead letters are encrypted.
    """

    closed: stream.Closed
    key: bytes
    opt_outs: pa.Array | None
    keys: vault.Vault

    @property
    def parts(self) -> Sequence[Any]:
        """As Source."""
        return self.closed.parts

    @property
    def rows(self) -> int:
        """As Source."""
        return sum(self.closed.outcomes.values())

    @property
    def digests(self) -> dict[str, str]:
        """As Source."""
        return {path: f"-{stop}" for path, stop in self.closed.read.items()}

    def read(self, root: beam.Pipeline, group: bounding.GroupByUser) -> Read:
        """Takes up what was read and grouped before."""
        grouped = root | "ClosedWindow" >> beam.Create(self.closed.parts, reshuffle=True).with_output_types(spill.Part)
        users = grouped
        opted_out = pa.array([], pa.string()) if self.opt_outs is None else self.opt_outs
        left_out = pseudonym.pseudonymise(opted_out, self.key)
        if len(left_out):
            users |= "WithoutOptOuts" >> beam.FlatMap(_without, left_out).with_output_types(pa.Table)
        outcomes = root | "Outcomes" >> beam.Create([self.closed.outcomes])
        letters = (
            root
            | "LetterFiles" >> beam.Create(self.closed.letters)
            | "Letters"
            >> beam.FlatMap(stream.letters_without, {each.hex() for each in left_out.to_pylist()}, self.keys).with_output_types(
                str
            )
        )
        return Read(grouped, users, outcomes, letters)


def _without(part: spill.Part, left_out: pa.Array) -> Iterator[pa.Table]:
    rows = bounding.without(spill.read(part), "privacy_id", left_out)
    if rows.num_rows:
        yield rows


def find(job: config.Job, now: dt.datetime, catalogue_ids: pa.Array | None, earlier: decode.Earlier | None = None) -> Source:
    """Finds the events of the job's window.

    Args:
        now: the job's clock.
        catalogue_ids: the only items there are; None: any.
        earlier: the job's windows before; None: there are none.

    Raises:
        sources.SourceError, kafka_client.KafkaError, pseudonym.PseudonymKeyError, config.JobFileError: bad input.
    """
    rules = event_rules(job, now, earlier)
    decoding = events.Decoding(
        rules,
        pseudonym.read_key(job.privacy.key_file),
        opt_outs(job),
        catalogue_ids,
        _fields(job),
        _keeps_late(job),
    )
    if job.source.kind == "kafka":
        return _topic(job, decoding, now)
    fragments = sources.find_fragments(job.source.kind, job.source.paths, rules.source_columns)
    # Of one window of many, the files say nothing.
    digests = sources.digests(fragments) if job.window.size == "all" else {}
    return Source(fragments, events.ReadAndDecode(decoding), sum(fragment.rows for fragment in fragments), digests)


def _topic(job: config.Job, decoding: events.Decoding, now: dt.datetime) -> Source:
    kafka, topic, rules = *_of_topic(job), decoding.rules
    until = rules.window_end + job.window.slack
    seen_until = None if rules.earlier is None else rules.earlier.seen_until
    parts = topics.ranges(
        kafka.connection,
        topic,
        since=rules.window_start - dt.timedelta(seconds=rules.max_skew_seconds),
        until=min(until, now),
        # The letters are those of the job's own windows.
        new_since=until if job.is_trending else seen_until,
        allow_create_time=kafka.allow_create_time,
    )
    reader = topics.ReadAndDecodeTopic(kafka.connection, _format(job, rules), decoding, kafka.allow_create_time)
    return Source(parts, reader, sum(part.stop - part.start for part in parts), topics.digests(parts))


def stream_partitions(job: config.Job, ended: dt.datetime) -> list[stream.Partition]:
    """Finds where a stream begins in each partition, so that it has all of the windows that end after a time.

    Raises:
        kafka_client.KafkaError: the topic can't be read.
    """
    kafka, topic = _of_topic(job)
    first = min(part.window.bounds(part.window.count(ended))[0] for part in job.parts)
    since = first - dt.timedelta(seconds=job.source.max_skew_seconds)
    found = topics.ranges(kafka.connection, topic, since, since, None, kafka.allow_create_time)
    return [stream.Partition(part.topic, part.partition, part.start, ended) for part in found]


def topic_partitions(job: config.Job) -> list[int]:
    """Returns the partitions that the job's topic has now."""
    kafka, topic = _of_topic(job)
    return kafka_client.partitions(kafka.connection, topic, "READ")


def stream_reader(job: config.Job, ended: dt.datetime, directory: str) -> stream.ReadTopicForever:
    """Makes the step that streams the job's topic.

    Args:
        ended: as `stream_partitions`.
        directory: where dead letters wait.

    Raises:
        formats.SchemaError, pseudonym.PseudonymKeyError, vault.VaultError, and what `load_catalogue` raises: bad input.
    """
    kafka, _ = _of_topic(job)
    windows = [part.window for part in job.parts]
    clock = stream.Clock([each.windows for each in windows], job.window.slack, job.settling)
    rules = event_rules(job, dt.datetime.now(dt.UTC))
    decoding = events.Decoding(
        rules,
        pseudonym.read_key(job.privacy.key_file),
        # Those who opt out later are left out of the windows that close then (ClosedWindow).
        opt_outs(job),
        public_items(job),
        [*_fields(job), "event_time", "arrival_time"],
        _keeps_late(job),
    )
    seen_until = [each.bounds(number - 1)[1] + each.slack if (number := each.count(ended)) else None for each in windows]
    return stream.ReadTopicForever(
        kafka.connection,
        _format(job, rules),
        decoding,
        clock,
        seen_until,
        directory,
        kafka.allow_create_time,
        vault.read(job.privacy.encryption_key_file),
    )


def _of_topic(job: config.Job) -> tuple[sections.KafkaSection, str]:
    if job.kafka is None or job.source.topic is None:
        raise ValueError('the job has no topic: source.kind is not "kafka".')
    return job.kafka, job.source.topic


def _format(job: config.Job, rules: decode.EventRules) -> formats.Format:
    """Of the messages of the job's topic."""
    columns = [name for name in rules.source_columns if name not in (topics.ARRIVAL, topics.KEY)]
    section = job.source
    return formats.of(section.format, columns, section.schema_file, section.schemas or None, section.message)


def _keeps_late(job: config.Job) -> bool:
    """Whether late messages are kept, to be sent to their topic."""
    return job.kafka is not None and job.kafka.late is not None and not job.is_trending


def _fields(job: config.Job) -> list[str]:
    return [name for name in bounding.BUCKET_EVENTS.names if name != "value" or job.source.weigh_by_value]


def load_catalogue(job: config.Job) -> catalogue.Catalogue | None:
    """Reads the job's catalogue as it is now, if it has one.

    Raises:
        catalogue.CatalogueError, kafka_client.KafkaError: it can't be used.
    """
    section = job.catalogue
    if section is None:
        return None
    meaning = (section.columns, section.features, section.kinds, section.multi_separator)
    if section.path is not None:
        return catalogue.load(section.path, *meaning)
    if section.topic is None or job.kafka is None:
        raise ValueError("the job's catalogue is neither a file nor a topic.")
    rows = items.rows(job.kafka.connection, section.topic, section.columns.get("item_id", "item_id"))
    return catalogue.of_rows(f"topic {section.topic}", rows, *meaning)


def public_items(job: config.Job) -> pa.Array | None:
    """Reads the ids of the job's catalogue as it is now; None: it has none. Raises: as `load_catalogue`."""
    return ids_of(load_catalogue(job))


def ids_of(public: catalogue.Catalogue | None) -> pa.Array | None:
    """Returns the ids of a catalogue's items; None: there is none."""
    return None if public is None else public.table["item_id"].combine_chunks()


def published(job: config.Job, account: ledger.Ledger) -> list[dict[str, Any]]:
    """Returns what the job itself has published, by the ledger, oldest first."""
    ours = (job.job.name, ledger.PUBLISHED)
    return [release for release in account.releases(job.job.data_set) if (release["job"], release["status"]) == ours]


def deliver(job: config.Job, kept: store.Store, account: ledger.Ledger) -> None:
    """Sends the dead letters of what the job has published from its topic, in order, and commits what it has read.

    Args:
        kept: the job's store.

    Raises:
        kafka_client.KafkaError: the broker refuses; the next run tries again.
        vault.VaultError: the letters can't be decrypted.
    """
    # Short windows read the same messages once more.
    if job.kafka is None or job.is_trending:
        return
    for release, record in unsent(job, kept, account):
        stops: dict[str, dict[int, int]] = {}
        for path, offsets in record["source"].items():
            topic, _, partition = path.rpartition("/")
            stops.setdefault(topic, {})[int(partition)] = int(offsets.partition("-")[2])
        group = job.kafka.group or f"sottovoce-{job.job.name}"
        sent = dead_letters.send(
            job.kafka.connection,
            job.kafka.dead_letters,
            job.kafka.late,
            group,
            stops,
            release["reserved_at"],
            kept.letters(release["attempt"]),
            vault.read(job.privacy.encryption_key_file),
        )
        kept.add_to_run_record(release["attempt"], {"is_delivered": True})
        if sent:
            log.info("sent %d dead or late messages to their topics", sent)


def unsent(job: config.Job, kept: store.Store, account: ledger.Ledger) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Returns what the whole job has published from its topic and not delivered yet: releases and run records, oldest first."""
    waiting: list[tuple[dict[str, Any], dict[str, Any]]] = []
    if job.kafka is None:
        return waiting
    ours = (job.job.whole, ledger.PUBLISHED)
    for release in reversed(account.releases(job.job.data_set)):
        if (release["job"], release["status"]) != ours:
            continue
        record = kept.find_run_record(release["attempt"])
        if record is None or record.get("is_delivered"):
            break
        waiting.append((release, record))
    return waiting[::-1]


def event_rules(job: config.Job, now: dt.datetime, earlier: decode.Earlier | None = None) -> decode.EventRules:
    """The job file's [source] and [window] as rules for one row."""
    source, is_topic = job.source, job.source.kind == "kafka"
    return decode.EventRules(
        columns={**source.columns, "arrival_time": topics.ARRIVAL} if is_topic else source.columns,
        event_types=source.event_types,
        window_start=job.window.start,
        window_end=job.window.end,
        now=now,
        context=source.context,
        time_unit=source.time_unit,
        min_value=source.min_value,
        weigh_by_value=source.weigh_by_value,
        max_skew_seconds=source.max_skew_seconds,
        slack_seconds=job.window.slack_seconds,
        # Files are read whole for each window, and each counts its own late events.
        earlier=earlier if is_topic else None,
    )


def opt_outs(job: config.Job) -> pa.Array | None:
    """The ids that take no part, by the job's file and by what its consent topic says now.

    Raises:
        config.JobFileError, kafka_client.KafkaError: one of them can't be read.
    """
    ids = _opt_out_file(job) | _opt_out_topic(job)
    return pa.array(sorted(ids), pa.string()) if job.privacy.opt_out or ids else None


def _opt_out_file(job: config.Job) -> set[str]:
    path = job.privacy.opt_out
    if path is None:
        return set()
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise config.JobFileError(
            f"privacy.opt_out = {path}: can't be read ({reason}); give a file of one id a line."
        ) from error
    # An id may have spaces around it, and so may a line: whoever either names stays out.
    return {id_ for line in lines for id_ in (line, line.strip()) if id_}


def opt_out(job: config.Job, privacy_ids: Collection[str]) -> int:
    """Adds ids to the job's file of opt-outs and to its consent topic; returns how many weren't in all that it has of these.

    Raises:
        config.JobFileError, kafka_client.KafkaError: one of them can't be used, or the job has neither.
    """
    path, topic = job.privacy.opt_out, None if job.kafka is None else job.kafka.consent
    if path is None and topic is None:
        raise config.JobFileError(
            "privacy.opt_out: the job has no list of opt-outs, so the user's next event would count. Set it to a file, even an "
            "empty one, or kafka.consent to a topic."
        )
    added = 0
    if path is not None:
        new = sorted(set(privacy_ids) - _opt_out_file(job))
        added = len(new)
        if new:
            _add_lines(path, new)
    if job.kafka is not None and topic is not None:
        added = max(added, consent.opt_out(job.kafka.connection, topic, privacy_ids))
    return added


def _add_lines(path: Path, ids: Sequence[str]) -> None:
    try:
        content = path.read_bytes()
        content += b"" if not content or content.endswith(b"\n") else b"\n"
        mode = stat.S_IMODE(path.stat().st_mode)
        files.write(path.resolve(), content + "".join(f"{id_}\n" for id_ in ids).encode(), mode)
    except OSError as error:
        raise config.JobFileError(f"privacy.opt_out = {path}: can't be written ({error.strerror}).") from error


def _opt_out_topic(job: config.Job) -> set[str]:
    if job.kafka is None or job.kafka.consent is None:
        return set()
    return consent.opted_out(job.kafka.connection, job.kafka.consent)
