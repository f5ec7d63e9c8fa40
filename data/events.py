"""The event schema: one row is one thing one user did with one item.

Version 1. Sources map their own column names onto these (`[source] columns`); `docs/events.md` documents each field.
`RAW_EVENTS` is what a source yields, before the pseudonym; `EVENTS` is what every step after it sees.
"""

import pyarrow as pa

SCHEMA_VERSION = 1

TIMESTAMP = pa.timestamp("us", tz="UTC")
PSEUDONYM = pa.binary(16)

REQUIRED = ("privacy_id", "item_id", "event_time")
"""Fields that a source must map and no row may leave empty."""

RAW_EVENTS = pa.schema(
    [
        pa.field("event_id", pa.string()),
        pa.field("privacy_id", pa.string(), nullable=False),
        pa.field("item_id", pa.string(), nullable=False),
        pa.field("event_type", pa.string(), nullable=False),
        pa.field("value", pa.float64()),
        pa.field("event_time", TIMESTAMP, nullable=False),
        pa.field("arrival_time", TIMESTAMP),
        pa.field("context", pa.map_(pa.string(), pa.string())),
    ],
    metadata={"sottovoce.schema_version": str(SCHEMA_VERSION)},
)

EVENTS = RAW_EVENTS.set(RAW_EVENTS.get_field_index("privacy_id"), pa.field("privacy_id", PSEUDONYM, nullable=False))
"""As `RAW_EVENTS`, with `privacy_id` a 16-byte keyed hash (BLAKE2b)."""
