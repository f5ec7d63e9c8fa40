"""Changes of a table's rows, as Debezium's connectors write them: `{"op": "u", "before": {...}, "after": {...}}` in JSON."""

import pyarrow as pa

from transforms.ingest import formats

OP = "__op"
"""What happened to the row: c (created), u (updated), r (read by a snapshot), d (deleted), or TOMBSTONE."""

TOMBSTONE = "tombstone"
"""A message without a value, which lets Kafka forget its key. Its columns are null; it is no problem."""

NO_OP = "the change's op isn't c, u, r or d"
NO_ROW = "the change has no row"


class Changes(formats.Json):
    """Unwraps changes: the wanted members of the row after it, or of the row before if it was deleted, as formats.Json does.

    The envelope may stand in `payload` beside its `schema`.
    """

    def decode(self, values: pa.BinaryArray) -> pa.Table:
        """As formats.Format says, with OP before PROBLEM."""
        scalars = formats.json_scalars("changed", "texts", self._columns)
        query = f"""
            with unwrapped as (
                select *, case when json_type(message, '/op') is null then json_type(message, '/payload') end as payload,
                    case when payload = 'OBJECT' then json_extract(message, '/payload') else message end as envelope,
                    {formats.RAW} is null or coalesce(payload = 'NULL', false) as is_tombstone
                from objects
            ), opened as (
                select *, json_extract_string(envelope, '/op') as given_op,
                    case when given_op in ('c', 'u', 'r', 'd') then given_op end as op,
                    json_extract(envelope, case when op = 'd' then '/before' else '/after' end) as content,
                    case when json_type(content) = 'OBJECT' then content end as changed,
                    {formats.json_texts("changed", self._columns)} as texts
                from unwrapped
            )
            select {scalars}, case when is_tombstone then '{TOMBSTONE}' else op end, case
                when is_tombstone then null
                when {formats.PROBLEM} is not null then {formats.PROBLEM}
                when message is null then {formats.sql_string(formats.NOT_JSON)}
                when op is null then {formats.sql_string(NO_OP)}
                when changed is null then {formats.sql_string(NO_ROW)}
            end, {formats.RAW}
            from opened
        """
        table = self._ask(query, values)
        return table.rename_columns([*self._columns, OP, formats.PROBLEM, formats.RAW])
