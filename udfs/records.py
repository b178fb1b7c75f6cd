"""The JSON that leaves the job: predictions, alerts, dead letters, duplicates.

Each has a schema in ``conf/schemas/``, and a ``schema_version`` that a breaking change raises.
``source`` (topic, partition, offset) names the input record: it is the same after a failure and a
replay, so a reader of an at-least-once topic can drop repeats by it.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson

from udfs.batch import FeatureBatch
from udfs.events import FloatArray, Reject

SCHEMA_VERSION = 1

_DUMP = orjson.OPT_SERIALIZE_NUMPY


def source_of(topic: str, partition: int, offset: int) -> dict[str, Any]:
    """The place of an input record."""
    return {"topic": topic, "partition": partition, "offset": offset}


def dead_letter(topic: str, reject: Reject) -> bytes:
    """A refused record: its bytes in base64, the reason, its place."""
    return orjson.dumps(
        {
            "schema_version": SCHEMA_VERSION,
            "code": reject.code,
            "message": reject.message,
            "raw_base64": base64.b64encode(reject.raw).decode(),
            "source": source_of(topic, reject.partition, reject.offset),
            "ingest_time_ms": reject.kafka_time_ms,
        }
    )


def duplicate(topic: str, event_id: str, position: Sequence[int]) -> bytes:
    """A record whose event was seen before: counted, not scored again."""
    partition, offset, kafka_time_ms = position
    return orjson.dumps(
        {
            "schema_version": SCHEMA_VERSION,
            "event_id": event_id,
            "source": source_of(topic, partition, offset),
            "ingest_time_ms": kafka_time_ms,
        }
    )


@dataclass(frozen=True, slots=True)
class Verdict:
    """What scoring said of a whole batch.

    Attributes:
        scores: float64 (n,).
        model_name: The model asked.
        model_version: The version that answered; none for a fallback.
        fallback_reason: Why the scores are the fallback; none when the model answered.
    """

    scores: FloatArray
    model_name: str
    model_version: int | None
    fallback_reason: str | None = None


class RecordWriter:
    """Turns a scored batch into JSON records.

    Args:
        topic: The events topic, named in ``source``.
        columns: The feature names, in the order of the batch's columns.
        stages: The key fields of the stages, in order.
        threshold: A score above it is an alert.
    """

    def __init__(
        self, topic: str, columns: Sequence[str], stages: Sequence[str], threshold: float
    ) -> None:
        self._topic = topic
        self._columns = tuple(columns)
        self._stages = tuple(stages)
        self._threshold = threshold

    def alert_rows(self, verdict: Verdict) -> list[int]:
        """Rows whose model score is above the threshold; a fallback never alerts."""
        if verdict.fallback_reason is not None:
            return []
        rows: list[int] = np.flatnonzero(verdict.scores > self._threshold).tolist()
        return rows

    def predictions(
        self, batch: FeatureBatch, verdict: Verdict, scored_time_ms: int
    ) -> list[dict[str, Any]]:
        """One prediction per event, as JSON-ready dicts."""
        columns, stages, topic = self._columns, self._stages, self._topic
        model = {"name": verdict.model_name, "version": verdict.model_version}
        return [
            {
                "schema_version": SCHEMA_VERSION,
                "prediction_id": f"{topic}-{partition}-{offset}",
                "event_id": event_id,
                "key": key,
                "score": score,
                "model": model,
                "fallback_reason": verdict.fallback_reason,
                "event_time_ms": time_ms,
                "ingest_time_ms": kafka_time_ms,
                "scored_time_ms": scored_time_ms,
                "features": dict(zip(columns, features, strict=True)),
                "order": dict(zip(stages, order, strict=True)),
                "source": {"topic": topic, "partition": partition, "offset": offset},
            }
            for event_id, key, score, time_ms, (
                partition,
                offset,
                kafka_time_ms,
            ), features, order in zip(
                batch.ids,
                batch.keys,
                verdict.scores.tolist(),
                batch.times.tolist(),
                batch.positions.tolist(),
                batch.features.tolist(),
                batch.order.tolist(),
                strict=True,
            )
        ]

    def alert(
        self, prediction: dict[str, Any], raw: bytes, contributions: FloatArray | None
    ) -> bytes:
        """A prediction merged into its original event, with the three features that weigh most.

        Args:
            prediction: The event's prediction.
            raw: The original record, extra fields included.
            contributions: float64 (columns,) in log-odds; none if the model gave none.
        """
        return orjson.dumps(
            {
                "schema_version": SCHEMA_VERSION,
                "threshold": self._threshold,
                "reasons": self._reasons(prediction["features"], contributions),
                "event": orjson.loads(raw),
                "prediction": prediction,
            }
        )

    def _reasons(
        self, features: dict[str, float], contributions: FloatArray | None
    ) -> list[dict[str, Any]]:
        if contributions is None:
            return []
        largest = np.argsort(-np.abs(contributions), kind="stable")[:3]
        return [
            {
                "feature": (name := self._columns[i]),
                "value": features[name],
                "contribution": float(contributions[i]),
            }
            for i in largest.tolist()
        ]


def lines(records: Sequence[dict[str, Any]]) -> list[bytes]:
    """Each record as JSON text; NaN becomes null."""
    return [orjson.dumps(r, option=_DUMP) for r in records]
