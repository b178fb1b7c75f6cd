"""What the Flink functions give, in a form that compares."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from pyflink.common import Row
from pyflink.datastream import OutputTag

from udfs.alerting.scored import ScoredBatch
from udfs.batches.batch import FeatureBatch, LabelBatch


def plain(value: Any) -> Any:
    """Anything that flows between functions as plain values that ``==`` compares; NaN as None."""
    if isinstance(value, FeatureBatch | LabelBatch | ScoredBatch):
        return {name: plain(getattr(value, name)) for name in type(value).__dataclass_fields__}
    if isinstance(value, OutputTag):
        return value.tag_id
    if isinstance(value, np.ndarray):
        return [value.shape, str(value.dtype), plain(value.tolist())]
    if isinstance(value, float):
        return None if value != value else value
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, Row):
        bucket_and_batch = len(value) == 2  # else records, of each sink
        return [plain(v) if bucket_and_batch else [*map(record_of, v)] for v in value]
    return value


def record_of(pair: list[bytes]) -> tuple[str, Any]:
    """A Kafka record: its key, and its JSON without the wall-clock time."""
    assert [type(pair), *map(type, pair)] == [list, bytes, bytes], "not what Flink's types hold"
    key, value = pair
    return key.decode(), untimed(json.loads(value))


TIMED = ("scored_time_ms", "told_time_ms", "shed_time_ms")


def untimed(document: dict[str, Any]) -> dict[str, Any]:
    if "prediction" in document:
        return document | {"prediction": untimed(document["prediction"])}
    return {k: v for k, v in document.items() if k not in TIMED}


def by_topic(rows: list[Any]) -> list[list[tuple[str, Any]]]:
    """The records for each sink, in an order of their own."""
    found = plain(rows)
    return [sorted((r for row in found for r in row[n]), key=repr) for n in range(4)]


def predicted(rows: list[Any]) -> list[str]:
    return sorted(p["event_id"] for row in plain(rows) for _, p in row[0])
