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
from udfs.events import FloatArray, IntArray, Reject

SCHEMA_VERSION = 1


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


class Predictions:
    """The prediction records of a batch, made as one text.

    Building a dict per event and dumping it costs four times as much as this: orjson writes all
    numbers of the batch at once, and one ``%`` puts them into as many copies of the template.

    Args:
        template: JSON of one record with a ``%s`` for each of ``fields``.
        fields: The texts of each field, one list of n per field.
    """

    def __init__(self, template: str, fields: Sequence[Sequence[str]]) -> None:
        self._template = template
        self._width = len(fields)
        self._texts: list[str] = [""] * (self._width * len(fields[0]))
        for at, texts in enumerate(fields):
            self._texts[at :: self._width] = texts

    def __len__(self) -> int:
        return len(self._texts) // self._width

    def record(self, row: int) -> str:
        """One event's prediction as JSON."""
        at = row * self._width
        return self._template % tuple(self._texts[at : at + self._width])

    def records(self) -> list[bytes]:
        """Every event's prediction as JSON."""
        template = "\n".join([self._template] * len(self))
        return (template % tuple(self._texts)).encode().split(b"\n")


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
    ) -> Predictions:
        """One prediction per event."""
        floats = np.concatenate([verdict.scores[:, None], batch.features], axis=1)
        whole = np.concatenate([batch.times[:, None], batch.positions, batch.order], axis=1)
        score, *features = _number_texts(floats)
        time_ms, partition, offset, kafka_time_ms, *order = _number_texts(whole)
        template = self._template(verdict, scored_time_ms)
        ids, keys = _escaped(batch.ids), _escaped(batch.keys)
        return Predictions(
            template,
            [
                *(partition, offset, ids, keys, score, time_ms, kafka_time_ms),
                *features,
                *order,
                *(partition, offset),
            ],
        )

    def _template(self, verdict: Verdict, scored_time_ms: int) -> str:
        topic = _constant(self._topic)
        model = {"name": verdict.model_name, "version": verdict.model_version}
        return (
            f'{{"schema_version":{SCHEMA_VERSION},"prediction_id":"{topic[1:-1]}-%s-%s",'
            '"event_id":"%s","key":"%s","score":%s,'
            f'"model":{_constant(model)},"fallback_reason":{_constant(verdict.fallback_reason)},'
            f'"event_time_ms":%s,"ingest_time_ms":%s,"scored_time_ms":{scored_time_ms},'
            f'"features":{{{_members(self._columns)}}},"order":{{{_members(self._stages)}}},'
            f'"source":{{"topic":{topic},"partition":%s,"offset":%s}}}}'
        )

    def alert(self, prediction: str, raw: bytes, reasons: list[dict[str, Any]]) -> bytes:
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


def _number_texts(matrix: FloatArray | IntArray) -> list[list[str]]:
    """Each column's numbers as JSON texts; NaN becomes null."""
    text = orjson.dumps(np.ascontiguousarray(matrix), option=orjson.OPT_SERIALIZE_NUMPY).decode()
    texts = text[2:-2].replace("],[", ",").split(",")
    return [texts[n :: matrix.shape[1]] for n in range(matrix.shape[1])]


def _escaped(texts: list[str]) -> list[str]:
    """What stands between the quotes of each text's JSON."""
    joined = "".join(texts)
    if '"' not in joined and "\\" not in joined and joined.isprintable():
        return texts
    return [orjson.dumps(text).decode()[1:-1] for text in texts]


def _constant(value: Any) -> str:
    """JSON for a template, in which a per cent sign stands twice."""
    return orjson.dumps(value).decode().replace("%", "%%")


def _members(names: Sequence[str]) -> str:
    return ",".join(f"{_constant(name)}:%s" for name in names)
