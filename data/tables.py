"""Schemas of the released and trained tables: everything below the privacy boundary, as Arrow and Parquet.

A release (`STORE/releases/ID/`) holds ITEMS, ITEM_COUNTS and ITEM_PAIRS; a model (`STORE/models/N/`) holds
EMBEDDINGS, FEATURE_EMBEDDINGS, RECOMMENDATIONS and POPULAR. The database is made from these files alone.
"""

import pyarrow as pa

from data import events

ITEMS = pa.schema(
    [
        pa.field("item_id", pa.string(), nullable=False),
        # noisy sum over users of 1 / sqrt(number of the user's items)
        pa.field("score", pa.float64(), nullable=False),
        # place in the co-occurrence matrix (0 = highest score); null: not kept for it
        pa.field("position", pa.int32()),
    ]
)

ITEM_COUNTS = pa.schema(
    [
        pa.field("window_start", events.TIMESTAMP, nullable=False),
        pa.field("window_end", events.TIMESTAMP, nullable=False),
        pa.field("item_id", pa.string(), nullable=False),
        pa.field("event_type", pa.string(), nullable=False),
        pa.field("users", pa.int64(), nullable=False),
        pa.field("events", pa.int64(), nullable=False),
        pa.field("users_low", pa.float64(), nullable=False),
        pa.field("users_high", pa.float64(), nullable=False),
        pa.field("events_low", pa.float64(), nullable=False),
        pa.field("events_high", pa.float64(), nullable=False),
    ]
)

ITEM_PAIRS = pa.schema(
    [
        # positions into ITEMS, row <= col: the upper triangle with its diagonal
        pa.field("row", pa.int32(), nullable=False),
        pa.field("col", pa.int32(), nullable=False),
        pa.field("value", pa.float64(), nullable=False),
    ]
)


def _embeddings(key: str) -> pa.Schema:
    return pa.schema(
        [
            pa.field(key, pa.string(), nullable=False),
            pa.field("embedding", pa.list_(pa.float32()), nullable=False),
            pa.field("history_embedding", pa.list_(pa.float32()), nullable=False),
            pa.field("bias", pa.float32(), nullable=False),
        ]
    )


EMBEDDINGS = _embeddings("item_id")
FEATURE_EMBEDDINGS = _embeddings("feature")

RECOMMENDATIONS = pa.schema(
    [
        pa.field("item_id", pa.string(), nullable=False),
        pa.field("rank", pa.int32(), nullable=False),
        pa.field("recommended_item_id", pa.string(), nullable=False),
        pa.field("score", pa.float32(), nullable=False),
    ]
)

POPULAR = pa.schema(
    [
        pa.field("rank", pa.int32(), nullable=False),
        pa.field("item_id", pa.string(), nullable=False),
        pa.field("score", pa.float64(), nullable=False),
    ]
)
