"""Predictions as columns, for a store."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson
import pyarrow as pa

from jobs.outlets.columns import BASE, IDENTITY
from jobs.outlets.target import DONE, Fate, Message, Outcome

_TIME = pa.timestamp("ms", tz="UTC")
_TYPES = {
    "text": pa.string(),
    "timestamptz": _TIME,
    "double precision": pa.float64(),
    "integer": pa.int32(),
    "boolean": pa.bool_(),
    "bigint": pa.int64(),
}


class Rows:
    """Reads predictions.

    Args:
        features: The names of the features, a column each.
    """

    def __init__(self, features: Sequence[str]) -> None:
        self._features = tuple(features)
        fields = [(name, _TYPES[kind]) for name, kind in BASE.items()]
        self.schema = pa.schema([*fields, *((name, pa.float64()) for name in features)])

    def read(self, messages: Sequence[Message]) -> tuple[pa.Table, list[int], list[Outcome]]:
        """The rows of those that are predictions, the index of each row's message, all outcomes.

        An outcome is ``DONE`` unless the message is refused.
        """
        rows: list[tuple[Any, ...]] = []
        at: list[int] = []
        outcomes = [DONE] * len(messages)
        for n, message in enumerate(messages):
            try:
                rows.append(self._row(orjson.loads(message.value)))
                at.append(n)
            except (ValueError, KeyError, TypeError, AttributeError) as exc:
                told = f"no prediction: {type(exc).__name__}: {exc}"
                outcomes[n] = Outcome(Fate.REFUSED, told)
        return self._table(rows), at, outcomes

    def _row(self, document: dict[str, Any]) -> tuple[Any, ...]:
        model, source, features = document["model"], document["source"], document["features"]
        return (
            document["key"],
            document["event_time_ms"],
            document["event_id"],
            document["prediction_id"],
            document["score"],
            model["name"],
            model["version"],
            document["fallback_reason"],
            document.get("late", False),
            document["ingest_time_ms"],
            document["scored_time_ms"],
            source["partition"],
            source["offset"],
            *map(features.get, self._features),
        )

    def _table(self, rows: list[tuple[Any, ...]]) -> pa.Table:
        columns = list(zip(*rows, strict=True)) if rows else [()] * len(self.schema)
        return pa.Table.from_arrays(
            [_array(c, f.type) for c, f in zip(columns, self.schema, strict=True)],
            schema=self.schema,
        )


def _array(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    if kind == _TIME:
        return pa.array(values, pa.int64()).cast(_TIME)
    return pa.array(values, kind)


def last_of_each(table: pa.Table) -> pa.Table:
    """The last row of each identity: an upsert takes a row once."""
    places = zip(*(table.column(name).to_pylist() for name in IDENTITY), strict=True)
    last = {place: n for n, place in enumerate(places)}
    return table if len(last) == len(table) else table.take(sorted(last.values()))
