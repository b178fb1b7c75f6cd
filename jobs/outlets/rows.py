"""Predictions as columns, for a store.

A batch is read by Arrow's own JSON reader, straight into columns. What that does not take, or takes
with a gap, is read record by record, which tells which one is at fault; the columns are the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import json as arrow_json

from jobs.outlets.columns import BASE, IDENTITY
from jobs.outlets.target import DONE, Fate, Message, Outcome

_OPTIONAL = ("model_version", "fallback_reason")
_SOURCES = {
    "event_time": "event_time_ms",
    "ingest_time": "ingest_time_ms",
    "scored_time": "scored_time_ms",
    "model_name": "model.name",
    "model_version": "model.version",
    "source_partition": "source.partition",
    "source_offset": "source.offset",
}
"""Where a column's value is in a prediction, if not under its name."""

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
        self._parse = arrow_json.ParseOptions(
            _written(features), unexpected_field_behavior="ignore"
        )

    def read(self, messages: Sequence[Message]) -> tuple[pa.Table, list[int], list[Outcome]]:
        """The rows of those that are predictions, the index of each row's message, all outcomes.

        An outcome is ``DONE`` unless the message is refused.
        """
        table = self._read_together(messages)
        if table is not None:
            return table, [*range(len(messages))], [DONE] * len(messages)
        return self._read_each(messages)

    def _read_together(self, messages: Sequence[Message]) -> pa.Table | None:
        """All of them, or none if one of them is not as a job writes it."""
        values = [message.value for message in messages]
        if not values or any(b"\n" in value for value in values):
            return None
        lines = b"\n".join(values)
        options = arrow_json.ReadOptions(use_threads=False, block_size=len(lines) + 1)
        try:
            found = arrow_json.read_json(
                pa.BufferReader(lines), read_options=options, parse_options=self._parse
            )
            table = self._flat(found.combine_chunks())
        except pa.ArrowInvalid:
            return None
        required = len(table) == len(values) and not any(
            table[name].null_count for name in BASE if name not in _OPTIONAL
        )
        return table if required else None

    def _flat(self, found: pa.Table) -> pa.Table:
        """Columns as stored; raises ArrowInvalid for a record that is a null or has no features."""
        if any(found[name].null_count for name in ("model", "source", "features")):
            raise pa.ArrowInvalid("a member is missing")
        for name in ("model", "source", "features"):
            for n, member in enumerate(found.schema.field(name).type):
                column = pc.struct_field(found[name], [n])
                found = found.append_column(f"{name}.{member.name}", column)
        late = pc.fill_null(found["late"], False)
        found = found.set_column(found.column_names.index("late"), "late", late)
        columns = [found[_SOURCES.get(name, name)] for name in BASE]
        columns += [found[f"features.{name}"] for name in self._features]
        pairs = zip(columns, self.schema, strict=True)
        return pa.Table.from_arrays([c.cast(f.type) for c, f in pairs], schema=self.schema)

    def _read_each(self, messages: Sequence[Message]) -> tuple[pa.Table, list[int], list[Outcome]]:
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
            model.get("version"),
            document.get("fallback_reason"),
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


def _written(features: Sequence[str]) -> pa.Schema:
    """What is read of a prediction, as a job writes it."""
    model = pa.struct([("name", pa.string()), ("version", pa.int64())])
    source = pa.struct([("partition", pa.int64()), ("offset", pa.int64())])
    return pa.schema(
        [
            *((name, pa.string()) for name in ("key", "event_id", "prediction_id")),
            *((name, pa.int64()) for name in _SOURCES.values() if name.endswith("_ms")),
            ("score", pa.float64()),
            ("fallback_reason", pa.string()),
            ("late", pa.bool_()),
            ("model", model),
            ("source", source),
            ("features", pa.struct([(name, pa.float64()) for name in features])),
        ]
    )


def last_of_each(table: pa.Table) -> pa.Table:
    """The last row of each identity: an upsert takes a row once."""
    numbered = table.select(IDENTITY).append_column("row", pa.array(range(len(table)), pa.int64()))
    last = numbered.group_by(IDENTITY, use_threads=False).aggregate([("row", "max")])["row_max"]
    return table if len(last) == len(table) else table.take(last.take(pc.sort_indices(last)))
