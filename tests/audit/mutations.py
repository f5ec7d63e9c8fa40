"""Ways to break the guarantee, one at a time, by patching the shipped functions: the product has no such switch.

Each function takes a pytest.MonkeyPatch, and breaks one thing until that is undone.
"""

import dataclasses
import math
import pathlib

import numpy as np
import pyarrow as pa
import pytest

from data import ledger, store
from pipelines import config, release, source, train
from tests.audit import neighbours
from transforms import bounding
from transforms.ingest import decode
from transforms.privacy import noise
from transforms.release import cooccurrence, counts, selection


def noise_times_0_9(patch):
    grid, mechanism = noise.grid_gaussian, counts.gaussian
    patch.setattr(noise, "grid_gaussian", lambda size, noise_sd, *rest: grid(size, 0.9 * noise_sd, *rest))
    patch.setattr(
        counts,
        "gaussian",
        lambda given: mechanism(dataclasses.replace(given, noise_multiplier=0.9 * given.noise_multiplier)),
    )


def bounding_dropped(patch):
    patch.setattr(bounding, "bound_partitions", lambda rows, *_: rows)
    patch.setattr(bounding, "cap_events", lambda rows, _: rows)


def scaled_by_block(patch):
    def partial_sums(rows, items):
        weights = bounding.user_rows(rows, cooccurrence.kept_items(items)).weights
        for first, last, n_items in cooccurrence.blocks(weights.shape[1]):
            # To norm 1 over the block's columns alone.
            quantised = cooccurrence.quantise_rows(weights[:, first:].tocsr())
            yield (first, last, n_items), cooccurrence.exact_sums(quantised, 0, last - first)

    patch.setattr(cooccurrence, "partial_sums", partial_sums)


def off_diagonal_noise_too_small(patch):
    release_block, draw = cooccurrence.release_block, noise.draw

    def too_small(block, noise_sd, source="chacha"):
        def smaller(source, size, sd, bits):
            return draw(source, size, sd if sd == noise_sd else sd / math.sqrt(2), bits)

        with pytest.MonkeyPatch.context() as within:
            within.setattr(noise, "draw", smaller)
            return release_block(block, noise_sd, source)

    patch.setattr(cooccurrence, "release_block", too_small)


def selection_without_noise(patch):
    patch.setattr(noise, "draw", lambda source, size, *_: np.zeros(size, np.int64))


def threshold_for_one_item(patch):
    threshold = selection.threshold
    patch.setattr(selection, "threshold", lambda sigma, delta, _: threshold(sigma, delta, 1))


def opt_outs_after_counting(patch):
    """Whoever has opted out is taken out of what is published, which names nobody: so of nothing."""
    patch.setattr(source, "opt_outs", lambda _: None)


def a_noise_key_used_again(patch):
    patch.setattr(noise, "fresh_key", lambda: bytes(32))


def repeats_by_event_id_alone(patch):
    def drop_repeats(batch):
        ids = batch["event_id"].to_pylist()
        first = {event_id: row for row, event_id in reversed(list(enumerate(ids)))}
        return batch.filter(pa.array([event_id is None or first[event_id] == row for row, event_id in enumerate(ids)]))

    patch.setattr(bounding, "drop_repeats", drop_repeats)


def lateness_by_payload_times(patch):
    decode_rows = decode.Decoder.decode

    def by_watermark(self, file, batch):
        times = np.array(batch["event_time"].to_pylist(), "U32")
        # A day behind the newest event is late: texts in ISO 8601 are in order.
        newest = np.datetime64(max(times)[:10]) if len(times) else np.datetime64("2000-01-01")
        return decode_rows(self, file, batch.filter(pa.array(times >= str(newest - np.timedelta64(1, "D")))))

    patch.setattr(decode.Decoder, "decode", by_watermark)


def empty_windows_left_out(patch):
    windows = config.Job.windows

    def filled(self, until, after=None):
        planned = neighbours.plans(self)
        return (found for found in windows(self, until, after) if neighbours.contributions(planned[found[1]]).num_rows)

    patch.setattr(config.Job, "windows", filled)


def charged_once_released_twice(patch):
    reserve, publish = ledger.Ledger.reserve, ledger.Ledger.publish

    def once(self, request):
        granted = reserve(self, request)
        if granted.status == ledger.PUBLISHED:
            return dataclasses.replace(granted, release_id=store.new_id(), status=ledger.RESERVED)
        return granted

    patch.setattr(ledger.Ledger, "reserve", once)
    patch.setattr(ledger.Ledger, "publish", lambda *given: publish(*given) or True)


def every_attempt_visible(patch):
    patch.setattr(ledger.Ledger, "publish", lambda *_: True)
    patch.setattr(store.Store, "has", lambda *_: False)


def trained_on_raw_pairs(patch):
    read = train.read

    def raw(kept, manifest, catalogue):
        job, _ = config.load(pathlib.Path(kept.place).parent / "job.toml", [])
        released, exact = read(kept, manifest, catalogue), neighbours.exact(neighbours.plans(job)[0])
        order = [exact.items.index(released.ids[known]) for known in released.known]
        whole = np.triu(exact.pairs) + np.triu(exact.pairs, 1).T
        return released._replace(matrix=whole[np.ix_(order, order)] * 2.0**-cooccurrence.GRID_BITS)

    patch.setattr(train, "read", raw)


def source_digests_published(patch):
    build = release.build

    def telling(root, found, group, planned, request):
        return build(root, found, group, dataclasses.replace(planned, asked=found.digests), request)

    patch.setattr(release, "build", telling)
