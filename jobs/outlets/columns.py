"""The columns of a stored prediction; those of the features come behind."""

from __future__ import annotations

from collections.abc import Sequence

BASE = {
    "key": "text",
    "event_time": "timestamptz",
    "event_id": "text",
    "prediction_id": "text",
    "score": "double precision",
    "model_name": "text",
    "model_version": "integer",
    "fallback_reason": "text",
    "late": "boolean",
    "ingest_time": "timestamptz",
    "scored_time": "timestamptz",
    "source_partition": "integer",
    "source_offset": "bigint",
}
"""Name and PostgreSQL type."""

IDENTITY = ("key", "event_time", "event_id")
"""What names a row, so that a replay writes it anew; TimescaleDB wants the time among it."""


PLACE = ("record_partition", "record_offset")
"""Further columns of a Parquet file: the prediction's own place in its topic."""


def taken_names(features: Sequence[str]) -> list[str]:
    """Features that are named as a column of every prediction."""
    return [name for name in features if name in BASE or name in PLACE]
