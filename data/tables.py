"""Schemas of the released and trained tables: everything below the privacy boundary, as Arrow and Parquet.

A release (`STORE/releases/ID/`) holds ITEMS, ITEM_COUNTS and ITEM_PAIRS, or EVALUATIONS; a model (`STORE/models/N/`) holds
EMBEDDINGS, FEATURE_EMBEDDINGS, RECOMMENDATIONS and POPULAR. The database is made from these files and the manifests beside
them (MODEL_VERSIONS, RELEASE_REPORT) and the ledger (PRIVACY_LEDGER, PRIVACY_PERIODS) alone.
"""

import numpy as np
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


EVALUATIONS = pa.schema(
    [
        pa.field("window_start", events.TIMESTAMP, nullable=False),
        pa.field("window_end", events.TIMESTAMP, nullable=False),
        pa.field("release_id", pa.string(), nullable=False),
        # popularity, or a model's kind
        pa.field("model", pa.string(), nullable=False),
        # a model's number; null: popularity
        pa.field("version", pa.int32()),
        # recall | ndcg | mrr
        pa.field("metric", pa.string(), nullable=False),
        pa.field("k", pa.int32(), nullable=False),
        # null: too few users for the noise
        pa.field("value", pa.float64()),
        pa.field("low", pa.float64(), nullable=False),
        pa.field("high", pa.float64(), nullable=False),
        # who were asked, the same in each row of a release
        pa.field("users", pa.int64(), nullable=False),
        pa.field("users_low", pa.float64(), nullable=False),
        pa.field("users_high", pa.float64(), nullable=False),
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

MODEL_VERSIONS = pa.schema(
    [
        pa.field("version", pa.int32(), nullable=False),
        pa.field("created", events.TIMESTAMP, nullable=False),
        pa.field("release_ids", pa.list_(pa.string()), nullable=False),
        pa.field("model", pa.string(), nullable=False),
        pa.field("rank", pa.int32(), nullable=False),
        pa.field("epochs", pa.int32(), nullable=False),
        pa.field("items", pa.int32(), nullable=False),
        # a JSON object
        pa.field("parameters", pa.string(), nullable=False),
        pa.field("code_version", pa.string(), nullable=False),
    ]
)

PRIVACY_LEDGER = pa.schema(
    [
        # one row per mechanism of each release
        pa.field("release_id", pa.string(), nullable=False),
        pa.field("data_set", pa.string(), nullable=False),
        pa.field("created", events.TIMESTAMP, nullable=False),
        pa.field("window_start", events.TIMESTAMP, nullable=False),
        pa.field("window_end", events.TIMESTAMP, nullable=False),
        pa.field("unit", pa.string(), nullable=False),
        pa.field("period", pa.string(), nullable=False),
        # selection | counts.users | counts.events | cooccurrence | evaluation
        pa.field("mechanism", pa.string(), nullable=False),
        pa.field("noise_kind", pa.string(), nullable=False),
        pa.field("l2_sensitivity", pa.float64(), nullable=False),
        pa.field("noise_sd", pa.float64(), nullable=False),
        # noise_sd / l2_sensitivity
        pa.field("noise_multiplier", pa.float64(), nullable=False),
        # set aside for selection's threshold; 0 otherwise
        pa.field("delta", pa.float64(), nullable=False),
        # of the whole release, the same in each of its rows
        pa.field("total_epsilon", pa.float64(), nullable=False),
        pa.field("total_delta", pa.float64(), nullable=False),
    ]
)

PRIVACY_PERIODS = pa.schema(
    [
        # one row for each budget period of the data set in which something was reserved
        pa.field("data_set", pa.string(), nullable=False),
        pa.field("period", pa.string(), nullable=False),
        pa.field("unit", pa.string(), nullable=False),
        pa.field("composition", pa.string(), nullable=False),
        pa.field("releases", pa.int64(), nullable=False),
        # of all that was reserved in the period together
        pa.field("spent_epsilon", pa.float64(), nullable=False),
        pa.field("spent_delta", pa.float64(), nullable=False),
        pa.field("total_epsilon", pa.float64(), nullable=False),
        pa.field("total_delta", pa.float64(), nullable=False),
    ]
)

RELEASE_REPORT = pa.schema(
    [
        pa.field("release_id", pa.string(), nullable=False),
        pa.field("section", pa.string(), nullable=False),
        pa.field("line", pa.int32(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
    ]
)


def vectors(column: pa.ChunkedArray) -> np.ndarray:
    """Returns a column of embeddings, all of one length, as a matrix, float32 (n, d); (0, 1) where there is none."""
    joined = column.combine_chunks()
    return joined.flatten().to_numpy().reshape(len(joined), -1) if len(joined) else np.zeros((0, 1), np.float32)
