"""The first step of every job: files in, pseudonymous events out, dead letters aside."""

import json
import logging
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import apache_beam as beam
import pyarrow as pa
from apache_beam import metrics

from transforms.ingest import decode, sources

_DEAD_LETTERS = "dead_letters"
_OUTCOMES = "outcomes"

log = logging.getLogger(__name__)


class Ingested(NamedTuple):
    """What ingest gives: tables of decode.WEIGHTED_EVENTS, dead letters as JSON lines, and one tally of outcomes."""

    events: beam.PCollection[pa.Table]
    dead_letters: beam.PCollection[str]
    outcomes: beam.PCollection[dict[str, int]]


class ReadAndDecode(beam.DoFn):
    """Reads a fragment and decodes it, in one fused step: no raw privacy id is ever shuffled."""

    def __init__(self, rules: decode.EventRules, key: bytes, opt_outs: pa.Array | None, catalogue_ids: pa.Array | None):
        self._rules, self._key, self._opt_outs, self._catalogue_ids = rules, key, opt_outs, catalogue_ids

    def setup(self) -> None:
        self._decoder = decode.Decoder(self._rules, self._key, self._opt_outs, self._catalogue_ids)

    def process(
        self, fragment: sources.Fragment
    ) -> Iterator[
        pa.Table
        | beam.pvalue.TaggedOutput[Literal["dead_letters"], str]
        | beam.pvalue.TaggedOutput[Literal["outcomes"], dict[str, int]]
    ]:
        first = fragment.first
        for batch in sources.read(fragment, self._rules.source_columns):
            decoded = self._decoder.decode(fragment.path, batch)
            for outcome, count in decoded.outcomes.items():
                metrics.Metrics.counter(type(self), outcome).inc(count)
            yield beam.pvalue.TaggedOutput(_OUTCOMES, decoded.outcomes)
            for letter in decoded.dead_letters.to_pylist():
                yield beam.pvalue.TaggedOutput(_DEAD_LETTERS, json.dumps(letter))
            if decoded.events.num_rows:
                yield decoded.events
            log.info("read rows %d to %d of %s", first, first + batch.num_rows - 1, fragment.path)
            first += batch.num_rows


class IngestEvents(beam.PTransform):
    """Reads, decodes and validates events, drops the opted-out and pseudonymises. In: a pipeline; out: Ingested."""

    def __init__(
        self,
        fragments: Sequence[sources.Fragment],
        rules: decode.EventRules,
        key: bytes,
        opt_outs: pa.Array | None = None,
        catalogue_ids: pa.Array | None = None,
    ):
        super().__init__()
        self._fragments = fragments
        self._reader = ReadAndDecode(rules, key, opt_outs, catalogue_ids)

    def expand(self, root: beam.pvalue.PBegin) -> Ingested:
        decoded = (
            root
            | "Fragments" >> beam.Create(self._fragments, reshuffle=True)
            | "ReadAndDecode" >> beam.ParDo(self._reader).with_outputs(_DEAD_LETTERS, _OUTCOMES, main="events")
        )
        outcomes = decoded[_OUTCOMES] | "AddOutcomes" >> beam.CombineGlobally(decode.add_outcomes)
        return Ingested(decoded["events"], decoded[_DEAD_LETTERS], outcomes)
