"""Where a job's events come from: what is to be read, and the step that reads it."""

import datetime as dt
import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pyarrow as pa

from data import ledger, store
from pipelines import config
from transforms import bounding
from transforms.ingest import consent, dead_letters, decode, events, formats, pseudonym, sources, topics

log = logging.getLogger(__name__)


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


def find(job: config.Job, now: dt.datetime, catalogue_ids: pa.Array | None, seen_until: dt.datetime | None) -> Source:
    """Finds the events of the job's window.

    Args:
        now: the job's clock.
        catalogue_ids: the only items there are; None: any.
        seen_until: to what arrived by then the source was read for the job's window before; None: there is none.

    Raises:
        sources.SourceError, kafka_client.KafkaError, pseudonym.PseudonymKeyError, config.JobFileError: bad input.
    """
    rules = event_rules(job, now, seen_until)
    decoding = events.Decoding(
        rules,
        pseudonym.read_key(job.privacy.key_file),
        opt_outs(job),
        catalogue_ids,
        [name for name in bounding.BUCKET_EVENTS.names if name != "value" or job.source.weigh_by_value],
    )
    if job.source.kind == "kafka":
        return _topic(job, decoding, now, seen_until)
    fragments = sources.find_fragments(job.source.kind, job.source.paths, rules.source_columns)
    # Of one window of many, the files say nothing.
    digests = sources.digests(fragments) if job.window.size == "all" else {}
    return Source(fragments, events.ReadAndDecode(decoding), sum(fragment.rows for fragment in fragments), digests)


def _topic(job: config.Job, decoding: events.Decoding, now: dt.datetime, seen_until: dt.datetime | None) -> Source:
    source, rules, kafka = job.source, decoding.rules, job.kafka
    if kafka is None or source.topic is None:
        raise ValueError("Source: a job from Kafka has a broker and a topic.")
    slack = dt.timedelta(seconds=rules.slack_seconds)
    parts = topics.ranges(
        kafka.connection,
        source.topic,
        since=rules.window_start - dt.timedelta(seconds=rules.max_skew_seconds),
        until=min(rules.window_end + slack, now),
        new_since=seen_until,
        allow_create_time=kafka.allow_create_time,
    )
    columns = [name for name in rules.source_columns if name not in (topics.ARRIVAL, topics.KEY)]
    form = formats.of(source.format, columns, source.schema_file, source.schemas or None, source.message)
    reader = topics.ReadAndDecodeTopic(kafka.connection, form, decoding, kafka.allow_create_time)
    return Source(parts, reader, sum(part.stop - part.start for part in parts), topics.digests(parts))


def deliver(job: config.Job, kept: store.Store, releases: Sequence[Mapping[str, Any]]) -> None:
    """Sends the dead letters of what the job has published from its topic, in order, and commits what it has read.

    Args:
        kept: the job's store.
        releases: the ledger's, of the job's data set.

    Raises:
        kafka_client.KafkaError: the broker refuses; the next run tries again.
    """
    if job.kafka is None:
        return
    waiting = []
    for release in reversed(releases):
        if (release["job"], release["status"]) == (job.job.name, ledger.PUBLISHED):
            record = kept.find_run_record(release["attempt"])
            if record is None or record.get("is_delivered"):
                break
            waiting.append((release, record))
    for release, record in reversed(waiting):
        stops: dict[str, dict[int, int]] = {}
        for path, offsets in record["source"].items():
            topic, _, partition = path.rpartition("/")
            stops.setdefault(topic, {})[int(partition)] = int(offsets.partition("-")[2])
        with (kept.operator("dead_letters") / f"{release['attempt']}.jsonl").open(encoding="utf-8") as letters:
            group = job.kafka.group or f"sottovoce-{job.job.name}"
            sent = dead_letters.send(
                job.kafka.connection, job.kafka.dead_letters, group, stops, release["reserved_at"], letters
            )
        kept.add_to_run_record(release["attempt"], {"is_delivered": True})
        if sent:
            log.info("sent %d dead letters to %s", sent, job.kafka.dead_letters)


def event_rules(job: config.Job, now: dt.datetime, seen_until: dt.datetime | None = None) -> decode.EventRules:
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
        seen_until=seen_until if is_topic else None,
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


def _opt_out_topic(job: config.Job) -> set[str]:
    if job.kafka is None or job.kafka.consent is None:
        return set()
    return consent.opted_out(job.kafka.connection, job.kafka.consent)
