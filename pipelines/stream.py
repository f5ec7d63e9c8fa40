"""The job that never ends: a topic read for ever on Flink, each window released as it closes.

Flink reads, decodes, groups by user and writes each closed window down; releasing, training and publishing are this process's,
by the code of a scheduled run. When either dies the topic is read again, from the first window on that was not released: that
stands in the ledger, and nothing else is remembered. With `runner.checkpoint_seconds` Flink's checkpoints are, and the next
start goes on from the last one (pipelines.upgrade).
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
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.runners.runner import PipelineState

from data import book, catalogue, errors, files, ledger, store, vault
from pipelines import config, engine, publish, release, source, train, upgrade
from runners import flink, flink_rest
from transforms import bounding
from transforms.ingest import events, kafka_client, pseudonym, stream

_LOOK_SECONDS = 0.1
_PARTITIONS_SECONDS = 30.0
"""How often new partitions are looked for."""
_RESTART_SECONDS = 5.0
_EXPIRE_SECONDS = 3600.0
"""How often what is older than the retention is deleted."""
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
    if files.is_url(job.job.store):
        raise config.JobFileError(
            f"job.store = {job.job.store}: what a stream has read waits on a path that all workers share."
        )
    if job.window.start.microsecond:
        raise config.JobFileError(f"window.start = {job.window.start}: a stream's windows start at whole seconds.")
    waiting = release.waiting(job, until or _NEVER)
    wanted = next(waiting, None)
    # At the start they must be there; later they are waited for.
    source.topic_partitions(job)
    source.load_catalogue(job)
    is_first, expired = True, time.monotonic()
    goes_on = job.runner.checkpoint_seconds is not None
    with store.Store(job.job.store).streaming(goes_on) as directory, _told() as told:
        while wanted is not None and not told:
            begun = time.monotonic()
            try:
                with contextlib.closing(_closed(job, wanted, directory, beam_flags, told)) as flow:
                    for place, number, closed in flow:
                        if (place, number) != wanted:
                            continue  # released by an earlier run
                        if not _released(job, place, number, closed, told):
                            break
                        if time.monotonic() - expired > _EXPIRE_SECONDS:
                            expired = time.monotonic()
                            _expire(job)
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
        if wanted is None and until is None:  # the last window that there is
            store.clear(directory)
    if signal.SIGINT in told:
        raise KeyboardInterrupt


class _Run(NamedTuple):
    """A stream that is to be begun, or gone on with.

    Attributes:
        directory: its own.
        began: with what.
        buckets: of users.
        readers: in how many processes it reads.
    """

    directory: Path
    began: upgrade.Began
    partitions: list[stream.Partition]
    reader: stream.ReadTopicForever
    buckets: int
    readers: int


def _prepare(job: config.Job, ended: dt.datetime, directory: Path) -> _Run:
    """Goes on with what an earlier stream has left in the directory, if that is right, or begins anew; deletes all else there.

    Args:
        ended: windows that end by then are not wanted.
    """
    kept = None if job.runner.checkpoint_seconds is None else upgrade.find(directory)
    if kept is not None:
        path, before = kept
        run = _run(job, before.at, before.ended, path)
        wants_earlier = "an earlier window is wanted" if ended < before.ended else None
        reason = wants_earlier or upgrade.changed(before, run.began)
        if reason is None:
            store.clear(directory, but=path)
            # Those who were left out before are among those who are now: `_changed` looks at these alone.
            upgrade.write(path, run.began)
            return run
        log.info("can't go on from the last checkpoint (%s): beginning anew, from the topic", reason)
    store.clear(directory)
    run = _run(job, dt.datetime.now(dt.UTC), ended, directory / store.new_id())
    run.directory.mkdir(mode=0o700)
    if job.runner.checkpoint_seconds is not None:
        upgrade.write(run.directory, run.began)
    return run


def _run(job: config.Job, at: dt.datetime, ended: dt.datetime, directory: Path) -> _Run:
    partitions = source.stream_partitions(job, ended)
    reader = source.stream_reader(job, ended, str(directory))
    has_book = any(part.window.max_windows_contributed for part in job.parts)
    buckets, readers = book.SHARDS if has_book else job.runner.buckets or _BUCKETS, _readers(job, partitions)
    spread = (buckets, readers, *(part.partition for part in partitions))
    return _Run(directory, upgrade.began(job, at, ended, reader.decoding, spread), partitions, reader, buckets, readers)


def _closed(
    job: config.Job, wanted: tuple[int, int], directory: Path, beam_flags: Sequence[str], told: list[int]
) -> Generator[tuple[int, int, stream.Closed], None, None]:
    """Streams from a window on, and yields the windows as they close: part and number, as config.Job.windows has them, and
    what they hold.

    Ends when the stream has to be begun again.
    """
    parts, (place, number) = job.parts, wanted
    ended = parts[place].window.bounds(number)[1] - dt.timedelta(microseconds=1)
    run = _prepare(job, ended, directory)
    partitions, checkpoints = run.partitions, upgrade.checkpoints(run.directory)
    pipeline = engine.pipeline(job, beam_flags, streaming=True, directory=checkpoints)
    group = bounding.GroupByUser(run.buckets, job.source.event_types, str(run.directory))
    _ = pipeline | "StreamWindows" >> stream.StreamWindows(partitions, run.reader, group, run.readers)
    is_restored, n_closed = flink.last_checkpoint(checkpoints) is not None, stream.count_closed(run.directory)
    if not is_restored:
        log.info("streaming %s from offsets %s on", job.source.topic, {part.partition: part.start for part in partitions})
    else:
        log.info("streaming %s from the last checkpoint on", job.source.topic)
    is_kept = job.runner.checkpoint_seconds is not None
    try:
        result = pipeline.run()
    except flink_rest.FlinkError as error:
        raise engine.failed(job, error) from error
    try:
        looked = time.monotonic()
        windows = job.windows(_NEVER, after=ended)
        place, number = next(windows)
        while not told and not PipelineState.is_terminal(result.state):
            closed = stream.find_closed(run.directory, place, number)
            if closed is not None:
                # Of the job's own windows alone, each of which must be read anew whole; and once for a window at most: what
                # changes all the time must not hold it back for ever.
                is_new = place == 0 and parts[place].window.closed_count(run.began.at) <= number
                try:
                    changed = _changed(job, run.reader.decoding) if is_new else None
                except errors.UserError as error:
                    log.error("a closed window has to wait: %s", error)
                    time.sleep(_RESTART_SECONDS)
                    continue
                if changed:
                    log.info("%s since the stream began: reading the window anew", changed)
                    is_kept = False
                    return
                yield place, number, closed
                place, number = next(windows)
            elif time.monotonic() - looked < _PARTITIONS_SECONDS:
                time.sleep(_LOOK_SECONDS)
            else:
                looked = time.monotonic()
                if _has_new_partitions(job, partitions):
                    log.info("%s has new partitions: reading them too", job.source.topic)
                    is_kept = False
                    return
        if not told:
            log.error("the stream ended (%s); beginning it again", result.state)
            if is_restored and stream.count_closed(run.directory) == n_closed:
                log.error("no window has closed since the checkpoint that it went on from: beginning anew, from the topic")
                is_kept = False
    finally:
        if is_kept:
            _stop(result)
        result.cancel()
        if not is_kept or flink.last_checkpoint(checkpoints) is None:
            shutil.rmtree(run.directory, ignore_errors=True)


def _stop(result: Any) -> None:
    """Ends a stream, if it runs, so that the next can go on from it."""
    if PipelineState.is_terminal(result.state):
        return
    try:
        result.stop()
    except flink_rest.FlinkError as error:
        log.warning("no savepoint: the next start goes on from the last checkpoint, if there is one (%s)", error)


def _readers(job: config.Job, partitions: Sequence[stream.Partition]) -> int:
    """In how many processes partitions are read: as many as the machine can run at once, if nothing else is said."""
    return max(1, min(job.runner.workers or os.cpu_count() or 1, len(partitions)))


def _released(job: config.Job, place: int, number: int, closed: stream.Closed, told: list[int]) -> bool:
    """Releases a closed window, trains and publishes; says whether that was done or refused. Else it was told to stop.

    Raises:
        errors.AlreadyReleasedError: another run has the job in hand.
    """

    def find(one: config.Job, now: dt.datetime, catalogue_ids: pa.Array | None) -> source.ClosedWindow:
        keys = vault.read(one.privacy.encryption_key_file)
        return source.ClosedWindow(closed, pseudonym.read_key(one.privacy.key_file), source.opt_outs(one), keys)

    part = job.parts[place]
    window = part.window.bounds(number)
    while not told:
        try:
            release_id = release.run_window(part, number, find)
            train.run_if_due(job, None if part.is_trending else release_id)
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


def _expire(job: config.Job) -> None:
    """Deletes what is older than the job's retention; if it can't be now, then another time."""
    try:
        release.expire(job)
    except errors.UserError as error:
        log.error("what is older than privacy.retention has to wait: %s", error)


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
