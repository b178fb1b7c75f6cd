"""The JSON that leaves the job: predictions, alerts, dead letters, duplicates.

Each has a schema in ``conf/schemas/``, and a ``schema_version`` that a breaking change raises.
``source`` (topic, partition, offset) names the input record: it is the same after a failure and a
replay, so a reader of an at-least-once topic can drop repeats by it.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson

from udfs.batches.batch import FeatureBatch
from udfs.batches.events import FloatArray, Reject
from udfs.batches.privacy import Privacy
from udfs.batches.templates import (
    FLOAT,
    TEXT,
    WHOLE,
    Template,
    as_template,
    between_quotes,
    json_text,
    members_of,
)

SCHEMA_VERSION = 1


def source_of(topic: str, partition: int, offset: int) -> dict[str, Any]:
    """The place of an input record."""
    return {"topic": topic, "partition": partition, "offset": offset}


def dead_letter(topic: str, reject: Reject, privacy: Privacy | None = None) -> bytes:
    """A refused record: its bytes in base64, the reason, its place.

    With sensitive fields the bytes are the record without them, or absent if it cannot be read.
    """
    raw: bytes | None = reject.raw
    message = reject.message
    if privacy is not None:
        raw, message = privacy.record(reject.raw), privacy.message(message)
    return orjson.dumps(
        {
            "schema_version": SCHEMA_VERSION,
            "code": reject.code,
            "message": message,
            "raw_base64": None if raw is None else base64.b64encode(raw).decode(),
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


def silence(key: str, last_event_time_ms: int, silent_after_ms: int, told_at_ms: int) -> bytes:
    """A key that has sent nothing for long: an alert of its own kind.

    The id is the same whenever the same silence is told again.
    """
    return orjson.dumps(
        {
            "schema_version": SCHEMA_VERSION,
            "kind": "silent",
            "event_id": f"{key}@silent@{last_event_time_ms}",
            "key": key,
            "last_event_time_ms": last_event_time_ms,
            "silent_after_ms": silent_after_ms,
            "told_time_ms": told_at_ms,
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
        arm: In a rollout, which side was asked: stable, canary or shadow.
    """

    scores: FloatArray
    model_name: str
    model_version: int | None
    fallback_reason: str | None = None
    arm: str | None = None


class RecordWriter:
    """Turns a scored batch into JSON records.

    Args:
        topic: The events topic, named in ``source``.
        columns: The feature names, in the order of the batch's columns.
        stages: The key fields of the stages, in order.
        threshold: A score above it is an alert.
        has_lookups: Whether predictions say which look-ups fell back.
        has_windows: Whether events are a roll-up's windows: a prediction has its window.
    """

    def __init__(
        self,
        topic: str,
        columns: Sequence[str],
        stages: Sequence[str],
        threshold: float,
        has_lookups: bool = False,
        has_windows: bool = False,
    ) -> None:
        self._topic = topic
        self._columns = tuple(columns)
        self.stages = tuple(stages)
        self._threshold = threshold
        self._has_lookups = has_lookups
        self._has_windows = has_windows
        self._templates: dict[tuple[Any, ...], Template] = {}

    def alert_rows(self, verdict: Verdict) -> list[int]:
        """Rows whose model score is above the threshold; a fallback never alerts."""
        if verdict.fallback_reason is not None:
            return []
        rows: list[int] = np.flatnonzero(verdict.scores > self._threshold).tolist()
        return rows

    def predictions(
        self, batch: FeatureBatch, verdict: Verdict, scored_time_ms: int
    ) -> list[bytes]:
        """One prediction per event."""
        floats = np.concatenate([verdict.scores[:, None], batch.features], axis=1)
        position = batch.positions[:, :2]
        times = np.empty((len(batch), 3), np.int64)
        times[:, 0], times[:, 1], times[:, 2] = batch.times, batch.positions[:, 2], scored_time_ms
        whole = np.concatenate([position, times, batch.order, position], axis=1)
        columns = [between_quotes(batch.ids), between_quotes(batch.keys)]
        if self._has_lookups:
            columns.append(batch.lookup_fallbacks)
        if self._has_windows:
            columns.append([raw.decode() for raw in batch.raw])
        texts = [""] * (len(columns) * len(batch))
        for n, column in enumerate(columns):
            texts[n :: len(columns)] = column
        records = self._template(verdict).fill(floats, whole, texts)
        for row in np.flatnonzero(batch.late).tolist():
            records[row] = records[row][:-1] + b',"late":true}'
        for rows, members in _warming(batch):
            for row in rows:
                records[row] = records[row][:-1] + members
        return records

    def _template(self, verdict: Verdict) -> Template:
        kind = verdict.model_name, verdict.model_version, verdict.fallback_reason, verdict.arm
        if kind not in self._templates:
            self._templates[kind] = self._new_template(verdict)
        return self._templates[kind]

    def _new_template(self, verdict: Verdict) -> Template:
        topic, fallback_reason = json_text(self._topic), verdict.fallback_reason
        named: dict[str, Any] = {"name": verdict.model_name, "version": verdict.model_version}
        model = json_text(named if verdict.arm is None else named | {"arm": verdict.arm})
        parts: list[str | int] = [
            f'{{"schema_version":{SCHEMA_VERSION},"prediction_id":"{topic[1:-1]}-',
            *(WHOLE, "-", WHOLE, '","event_id":"', TEXT, '","key":"', TEXT, '","score":', FLOAT),
            f',"model":{model},"fallback_reason":{json_text(fallback_reason)},',
            *(('"lookup_fallbacks":[', TEXT, "],") if self._has_lookups else ()),
            *(('"window":', TEXT, ",") if self._has_windows else ()),
            '"event_time_ms":',
            *(WHOLE, ',"ingest_time_ms":', WHOLE, ',"scored_time_ms":', WHOLE, ',"features":{'),
            *members_of(self._columns, FLOAT),
            '},"order":{',
            *members_of(self.stages, WHOLE),
            f'}},"source":{{"topic":{topic},"partition":',
            *(WHOLE, ',"offset":', WHOLE, "}}"),
        ]
        return as_template(parts)

    def alert(self, prediction: bytes, raw: bytes, reasons: list[dict[str, Any]]) -> bytes:
        """A prediction merged into its original event.

        Args:
            prediction: The event's prediction, JSON.
            raw: The original record, extra fields included.
            reasons: See ``reasons``.
        """
        return orjson.dumps(
            {
                "schema_version": SCHEMA_VERSION,
                "threshold": self._threshold,
                "reasons": reasons,
                # As it came: parsed and written again, deep nesting fails and long numbers change.
                "event": orjson.Fragment(raw),
                "prediction": orjson.Fragment(prediction),
            }
        )

    def reasons(
        self, features: FloatArray, contributions: FloatArray | None
    ) -> list[dict[str, Any]]:
        """The three features that weigh most in a score, the largest first.

        Args:
            features: float64 (columns,).
            contributions: float64 (columns,) in log-odds; none if the model gave none.
        """
        if contributions is None:
            return []
        largest = np.argsort(-np.abs(contributions), kind="stable")[:3]
        return [
            {
                "feature": self._columns[i],
                "value": float(features[i]),
                "contribution": float(contributions[i]),
            }
            for i in largest.tolist()
        ]


def _warming(batch: FeatureBatch) -> Iterator[tuple[list[int], bytes]]:
    """Rows that name the same features as incomplete, and how a record ends that says so."""
    if not batch.warming:
        return
    names = list(batch.warming)
    since = np.stack([batch.warming[name] for name in names], axis=1)
    kinds, kind = np.unique(since, axis=0, return_inverse=True)
    for number, row in enumerate(kinds.tolist()):
        said = {name: since_ms for name, since_ms in zip(names, row, strict=True) if since_ms}
        if said:
            rows: list[int] = np.flatnonzero(kind.ravel() == number).tolist()
            yield rows, b',"warming":' + orjson.dumps(said) + b"}"
