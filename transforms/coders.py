"""How tables travel between Beam's steps: as Arrow IPC streams, which copy columns, not objects."""

import apache_beam as beam
import pyarrow as pa


class TableCoder(beam.coders.Coder):
    """Encodes a pyarrow.Table as an Arrow IPC stream.

    Not compressed: pseudonyms and event ids, most of it, are random, and LZ4 took longer than all other steps.
    """

    def encode(self, value: pa.Table) -> bytes:
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, value.schema) as writer:
            writer.write_table(value)
        return sink.getvalue().to_pybytes()

    def decode(self, encoded: bytes) -> pa.Table:
        return pa.ipc.open_stream(encoded).read_all()

    def estimate_size(self, value: pa.Table) -> int:
        # Beam would encode it to find out.
        return value.nbytes

    def is_deterministic(self) -> bool:
        return False

    def to_type_hint(self) -> type:
        return pa.Table
