"""The first step of every job: events in, pseudonymous events out, dead letters aside."""

import dataclasses
import itertools
import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

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


@dataclasses.dataclass(frozen=True)
class Decoding:
    """What decode.Decoder takes."""

    rules: decode.EventRules
    key: bytes
    opt_outs: pa.Array | None = None
    catalogue_ids: pa.Array | None = None
    fields: Sequence[str] = tuple(schema.EVENTS.names)
    keeps_late: bool = False


class DecodeBatches(beam.DoFn):
    """Decodes what a source yields; the step that reads it is one of these, so that no raw privacy id is ever shuffled."""

    def __init__(self, decoding: Decoding):
        self.decoding = decoding

    def setup(self) -> None:
        given = self.decoding
        self._decoders = [
            decode.Decoder(given.rules, given.key, given.opt_outs, given.catalogue_ids, given.fields, given.keeps_late)
            for _ in range(threads.THREADS)
        ]

    def decoded(self, path: str, batches: Iterable[pa.Table]) -> Iterator[tuple[pa.Table, decode.Decoded]]:
        """Yields batches and what is in them, in order."""
        return threads.map_ahead(
            lambda given: (given[1], given[0].decode(path, given[1])),
            zip(itertools.cycle(self._decoders), batches, strict=False),
        )

    def outputs(self, decoded: decode.Decoded, letters: Iterable[str]) -> Iterator[Any]:
        """A batch's tally, dead letters and events, as the step's outputs."""
        for outcome, count in decoded.outcomes.items():
            metrics.Metrics.counter(type(self), outcome).inc(count)
        yield beam.pvalue.TaggedOutput(_OUTCOMES, decoded.outcomes)
        for letter in letters:
            yield beam.pvalue.TaggedOutput(_DEAD_LETTERS, letter)
        if decoded.events.num_rows:
            yield decoded.events


class ReadAndDecode(DecodeBatches):
    """Reads a fragment of files and decodes it."""

    def read(self, fragment: sources.Fragment) -> Iterator[tuple[pa.Table, decode.Decoded]]:
        """Yields batches and what is in them, in order."""
        rules = self.decoding.rules
        return self.decoded(fragment.path, sources.read(fragment, rules.source_columns, rules.repetitive_columns))

    def process(
        self, fragment: sources.Fragment
    ) -> Iterator[
        pa.Table
        | beam.pvalue.TaggedOutput[Literal["dead_letters"], str]
        | beam.pvalue.TaggedOutput[Literal["outcomes"], dict[str, int]]
    ]:
        first = fragment.first
        for batch, decoded in self.read(fragment):
            yield from self.outputs(decoded, map(json.dumps, decoded.dead_letters.to_pylist()))
            log.info("read rows %d to %d of %s", first, first + batch.num_rows - 1, fragment.path)
            first += batch.num_rows


class IngestEvents(beam.PTransform):
    """Reads, decodes and validates events, drops the opted-out and pseudonymises. In: a pipeline; out: Ingested.

    Args:
        parts: of the source, each read by one worker.
        reader: of such a part.
    """

    def __init__(self, parts: Sequence[Any], reader: DecodeBatches):
        super().__init__()
        self._parts, self._reader = parts, reader

    def expand(self, root: beam.pvalue.PBegin) -> Ingested:
        decoded = (
            root
            | "Parts" >> beam.Create(self._parts, reshuffle=True)
            | "ReadAndDecode" >> beam.ParDo(self._reader).with_outputs(_DEAD_LETTERS, _OUTCOMES, main="events")
        )
        outcomes = decoded[_OUTCOMES] | "AddOutcomes" >> beam.CombineGlobally(decode.add_outcomes)
        return Ingested(decoded["events"], decoded[_DEAD_LETTERS], outcomes)
