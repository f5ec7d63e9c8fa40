"""The job that never ends: a topic read for ever on Flink, each window released as it closes.

Flink reads, decodes, groups by user and writes each closed window down; releasing, training and publishing are this process's,
by the code of a scheduled run. When either dies the topic is read again, from the first window on that was not released: that
stands in the ledger, and nothing else is remembered.
"""

import contextlib
import datetime as dt
import logging
import os
import shutil
import signal
import time
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from types import FrameType

import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.runners.runner import PipelineState

from data import book, catalogue, errors, ledger, store
from pipelines import config, engine, publish, release, source, train
from runners import flink_rest
from transforms import bounding
from transforms.ingest import events, kafka_client, pseudonym, stream

_LOOK_SECONDS = 0.1
_PARTITIONS_SECONDS = 30.0
"""How often new partitions are looked for."""
_RESTART_SECONDS = 5.0
_BUCKETS = 16
_NEVER = dt.datetime.max.replace(tzinfo=dt.UTC)

log = logging.getLogger(__name__)


def run(job: config.Job, beam_flags: Sequence[str] = (), until: dt.datetime | None = None) -> None:
    """Releases windows as they close, until SIGTERM or SIGINT comes: a release that is under way is finished first.

    A window that is refused is reported, and the stream goes on with the next.

    Args:
        until: ends when the last window that was closed then is released or refused.

    Raises:
        config.JobFileError: the job has no topic, or no windows of whole seconds.
        errors.AlreadyReleasedError: the job is streamed already, or its store doesn't hold what it has published.
        kafka_client.KafkaError, catalogue.CatalogueError: a topic, or the catalogue, can't be read.
        engine.EngineError: Flink can't be used.
        KeyboardInterrupt: SIGINT came.
    """
    if job.source.topic is None or job.window.size == "all":
        raise config.JobFileError('a stream needs source.kind = "kafka" and windows that follow one another (window.size).')
    if job.window.start.microsecond:
        raise config.JobFileError(f"window.start = {job.window.start}: a stream's windows start at whole seconds.")
    waiting = release.waiting(job, until or _NEVER)
    wanted = next(waiting, None)
    # At the start they must be there; later they are waited for.
    source.topic_partitions(job)
    source.load_catalogue(job)
    is_first = True
    with store.Store(job.job.store).streaming() as directory, _told() as told:
        while wanted is not None and not told:
            begun = time.monotonic()
            try:
                with contextlib.closing(_closed(job, wanted, directory, beam_flags, told)) as flow:
                    for place, number, closed in flow:
                        if (place, number) != wanted:
                            continue  # released by an earlier run
                        if not _released(job, place, number, closed, told):
                            break
                        wanted = next(waiting, None)
                        if wanted is None:
                            break
            except (kafka_client.KafkaError, catalogue.CatalogueError, engine.EngineError) as error:
                if isinstance(error, engine.EngineError) and is_first:
                    raise
                log.error("%s Trying again.", error)
            is_first = False
            while wanted is not None and not told and time.monotonic() - begun < _RESTART_SECONDS:
                time.sleep(_LOOK_SECONDS)
    if signal.SIGINT in told:
        raise KeyboardInterrupt


def _closed(
    job: config.Job, wanted: tuple[int, int], directory: Path, beam_flags: Sequence[str], told: list[int]
) -> Generator[tuple[int, int, stream.Closed], None, None]:
    """Streams from a window on, and yields the windows as they close: part and number, as config.Job.windows has them, and
    what they hold.

    Ends when the stream has to be begun again.
    """
    begun, run_directory = dt.datetime.now(dt.UTC), directory / store.new_id()
    run_directory.mkdir(mode=0o700)
    parts, (place, number) = job.parts, wanted
    ended = parts[place].window.bounds(number)[1] - dt.timedelta(microseconds=1)
    partitions = source.stream_partitions(job, ended)
    pipeline = engine.pipeline(job, beam_flags, streaming=True)
    has_book = any(part.window.max_windows_contributed for part in parts)
    buckets = book.SHARDS if has_book else job.runner.buckets or _BUCKETS
    group = bounding.GroupByUser(buckets, job.source.event_types, str(run_directory))
    reader = source.stream_reader(job, ended, str(run_directory))
    _ = pipeline | "StreamWindows" >> stream.StreamWindows(partitions, reader, group, _readers(job, partitions))
    log.info("streaming %s from offsets %s on", job.source.topic, {part.partition: part.start for part in partitions})
    try:
        result = pipeline.run()
    except flink_rest.FlinkError as error:
        raise engine.failed(job, error) from error
    try:
        looked = time.monotonic()
        windows = job.windows(_NEVER, after=ended)
        place, number = next(windows)
        while not told and not PipelineState.is_terminal(result.state):
            closed = stream.find_closed(run_directory, place, number)
            if closed is not None:
                # Of the job's own windows alone, each of which must be read anew whole; and once for a window at most: what
                # changes all the time must not hold it back for ever.
                is_new = place == 0 and parts[place].window.closed_count(begun) <= number
                try:
                    changed = _changed(job, reader.decoding) if is_new else None
                except errors.UserError as error:
                    log.error("a closed window has to wait: %s", error)
                    time.sleep(_RESTART_SECONDS)
                    continue
                if changed:
                    log.info("%s since the stream began: reading the window anew", changed)
                    return
                yield place, number, closed
                place, number = next(windows)
            elif time.monotonic() - looked < _PARTITIONS_SECONDS:
                time.sleep(_LOOK_SECONDS)
            else:
                looked = time.monotonic()
                if _has_new_partitions(job, partitions):
                    log.info("%s has new partitions: reading them too", job.source.topic)
                    return
        if not told:
            log.error("the stream ended (%s); beginning it again", result.state)
    finally:
        result.cancel()
        shutil.rmtree(run_directory, ignore_errors=True)


def _readers(job: config.Job, partitions: Sequence[stream.Partition]) -> int:
    """In how many processes partitions are read: as many as the machine can run at once, if nothing else is said."""
    return max(1, min(job.runner.workers or os.cpu_count() or 1, len(partitions)))


def _released(job: config.Job, place: int, number: int, closed: stream.Closed, told: list[int]) -> bool:
    """Releases a closed window, trains and publishes; says whether that was done or refused. Else it was told to stop.

    Raises:
        errors.AlreadyReleasedError: another run has the job in hand.
    """

    def find(one: config.Job, now: dt.datetime, catalogue_ids: pa.Array | None) -> source.ClosedWindow:
        return source.ClosedWindow(closed, pseudonym.read_key(one.privacy.key_file), source.opt_outs(one))

    part = job.parts[place]
    window = part.window.bounds(number)
    while not told:
        try:
            path = release.run_window(part, number, find)
            train.run_if_due(job, None if part.is_trending else path.name)
            publish.run(job)
        except (ledger.BudgetRefusedError, errors.RefusedError, errors.NothingThereError) as error:
            log.error("the window from %s to %s is not released: %s", *window, error)
        except errors.AlreadyReleasedError:
            raise
        except errors.UserError as error:
            log.error("the window from %s to %s has to wait: %s", *window, error)
            time.sleep(_RESTART_SECONDS)
            continue
        return True
    return False


def _has_new_partitions(job: config.Job, partitions: Sequence[stream.Partition]) -> bool:
    try:
        there = source.topic_partitions(job)
    except kafka_client.KafkaError as error:
        log.warning("%s", error)
        return False
    return set(there) > {part.partition for part in partitions}


def _changed(job: config.Job, began_with: events.Decoding) -> str | None:
    """What has changed so that events may count which the stream has dropped."""
    items, known, opted_out = source.public_items(job), began_with.catalogue_ids, began_with.opt_outs
    if items is not None and known is not None and set(items.to_pylist()) != set(known.to_pylist()):
        return "the catalogue has other items"
    if opted_out is not None and len(opted_out):
        now = source.opt_outs(job)
        if now is None or not pc.all(pc.is_in(opted_out, value_set=now)).as_py():
            return "somebody has opted in again"
    return None


@contextlib.contextmanager
def _told() -> Iterator[list[int]]:
    """Yields a list to which SIGTERM and SIGINT add themselves."""
    told: list[int] = []

    def note(number: int, _: FrameType | None) -> None:
        told.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield told
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


if __name__ == "__main__":
    from pipelines import cli

    cli.main_of("stream")
