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

EVENTS = pa.schema(
    [
        pa.field("event_id", pa.uint64()),
        pa.field("privacy_id", PSEUDONYM, nullable=False),
        pa.field("item_id", pa.dictionary(pa.int32(), pa.string()), nullable=False),
        pa.field("event_type", pa.dictionary(pa.int32(), pa.string()), nullable=False),
        *list(RAW_EVENTS)[RAW_EVENTS.get_field_index("value") :],
    ]
)
"""As `RAW_EVENTS`, hashed and encoded: `event_id` a 64-bit hash, `privacy_id` a keyed one of 16 bytes, and items and types as
dictionaries. A dictionary belongs to its table, and may have values that no row has, or a value twice."""
