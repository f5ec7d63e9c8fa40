"""The first step of every job: files in, pseudonymous events out, dead letters aside."""

import itertools
import json
import logging
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import apache_beam as beam
import pyarrow as pa
from apache_beam import metrics

from data import events as schema
from transforms import threads
from transforms.ingest import decode, sources

_DEAD_LETTERS = "dead_letters"
_OUTCOMES = "outcomes"

log = logging.getLogger(__name__)


class Ingested(NamedTuple):
    """What ingest gives: tables of data.events.EVENTS, dead letters as JSON lines, and one tally of outcomes."""

    events: beam.PCollection[pa.Table]
    dead_letters: beam.PCollection[str]
    outcomes: beam.PCollection[dict[str, int]]


class ReadAndDecode(beam.DoFn):
    """Reads a fragment and decodes it, in one fused step: no raw privacy id is ever shuffled."""

    def __init__(
        self,
        rules: decode.EventRules,
        key: bytes,
        opt_outs: pa.Array | None = None,
        catalogue_ids: pa.Array | None = None,
        fields: Sequence[str] = schema.EVENTS.names,
    ):
        self._rules, self._key, self._opt_outs, self._catalogue_ids = rules, key, opt_outs, catalogue_ids
        self._fields = fields

    def setup(self) -> None:
        self._decoders = [
            decode.Decoder(self._rules, self._key, self._opt_outs, self._catalogue_ids, self._fields)
            for _ in range(threads.THREADS)
        ]

    def process(
        self, fragment: sources.Fragment
    ) -> Iterator[
        pa.Table
        | beam.pvalue.TaggedOutput[Literal["dead_letters"], str]
        | beam.pvalue.TaggedOutput[Literal["outcomes"], dict[str, int]]
    ]:
        first = fragment.first
        for rows, decoded in self._decode(fragment):
            for outcome, count in decoded.outcomes.items():
                metrics.Metrics.counter(type(self), outcome).inc(count)
            yield beam.pvalue.TaggedOutput(_OUTCOMES, decoded.outcomes)
            for letter in decoded.dead_letters.to_pylist():
                yield beam.pvalue.TaggedOutput(_DEAD_LETTERS, json.dumps(letter))
            if decoded.events.num_rows:
                yield decoded.events
            log.info("read rows %d to %d of %s", first, first + rows - 1, fragment.path)
            first += rows

    def _decode(self, fragment: sources.Fragment) -> Iterator[tuple[int, decode.Decoded]]:
        """Yields batches' sizes and what is in them, in order."""
        batches = sources.read(fragment, self._rules.source_columns, self._rules.repetitive_columns)
        return threads.map_ahead(
            lambda given: (given[1].num_rows, given[0].decode(fragment.path, given[1])),
            zip(itertools.cycle(self._decoders), batches, strict=False),
        )


class IngestEvents(beam.PTransform):
    """Reads, decodes and validates events, drops the opted-out and pseudonymises. In: a pipeline; out: Ingested.

    Takes what decode.Decoder takes, and the fragments to read.
    """

    def __init__(
        self,
        fragments: Sequence[sources.Fragment],
        rules: decode.EventRules,
        key: bytes,
        opt_outs: pa.Array | None = None,
        catalogue_ids: pa.Array | None = None,
        fields: Sequence[str] = schema.EVENTS.names,
    ):
        super().__init__()
        self._fragments = fragments
        self._reader = ReadAndDecode(rules, key, opt_outs, catalogue_ids, fields)

    def expand(self, root: beam.pvalue.PBegin) -> Ingested:
        decoded = (
            root
            | "Fragments" >> beam.Create(self._fragments, reshuffle=True)
            | "ReadAndDecode" >> beam.ParDo(self._reader).with_outputs(_DEAD_LETTERS, _OUTCOMES, main="events")
        )
        outcomes = decoded[_OUTCOMES] | "AddOutcomes" >> beam.CombineGlobally(decode.add_outcomes)
        return Ingested(decoded["events"], decoded[_DEAD_LETTERS], outcomes)
