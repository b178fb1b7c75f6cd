"""What a run of chaos sends: valid events of any schema with contiguous ids, and poison."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any, NamedTuple

import numpy as np
import orjson

from udfs.definition.event import FieldSpec
from udfs.definition.schema import Schema

START_MS = 1_750_000_000_000
STEP_MS = 5
"""Of event time between two events: what waits for minutes is not late when it is read."""

ENTITIES = 5_000
_CHUNK = 4_096
_SECOND_MS = 1_000
_MOST = 1_000.0
"""The span of a number without bounds."""


class Event(NamedTuple):
    """A record to be written.

    Attributes:
        entity: The number of its key: it decides the partition.
        key: The record's key.
        value: The record.
    """

    entity: int
    key: bytes
    value: bytes


def event_id(number: int) -> str:
    """The id of the n-th event."""
    return f"e{number}"


def number_of(event_id: str) -> int:
    """The number of an event by its id."""
    return int(event_id[1:])


def events(schema: Schema, seed: int) -> Iterator[Event]:
    """Valid events without end, the n-th with the id ``event_id(n)``.

    Args:
        schema: The job's.
        seed: Of all values.
    """
    chance = np.random.default_rng(seed)
    makers = {f.name: _maker(schema, f) for f in schema.event.fields}
    number = 0
    while True:
        entities = chance.integers(0, ENTITIES, _CHUNK)
        drawn = chance.random((_CHUNK, len(makers)))
        for entity, row in zip(entities.tolist(), drawn.tolist(), strict=True):
            document = {
                name: make(number, entity, value)
                for (name, make), value in zip(makers.items(), row, strict=True)
            }
            key = str(document[schema.key]).encode()
            yield Event(entity, key, orjson.dumps(document))
            number += 1


_Maker = Callable[[int, int, float], Any]
"""Takes the event's number, its key's number and a number from 0 to 1; gives the field's value."""


def _maker(schema: Schema, field: FieldSpec) -> _Maker:
    event = schema.event
    if field.name == event.id:
        return lambda number, entity, drawn: event_id(number)
    if field.name == event.time.field:
        write = _TIMES[event.time.format]
        return lambda number, entity, drawn: write(START_MS + number * STEP_MS)
    if field.name == schema.key:
        return lambda number, entity, drawn: f"{field.name}-{entity}"
    if field.name in schema.key_fields:  # so that several keys share one
        return lambda number, entity, drawn: f"{field.name}-{int(drawn * ENTITIES / 5)}"
    if field.type == "string":
        known = _categories(schema, field.name)
        return lambda number, entity, drawn: known[int(drawn * len(known))]
    return _number_maker(field)


def _number_maker(field: FieldSpec) -> _Maker:
    if field.type == "bool":
        return lambda number, entity, drawn: drawn < 0.5
    low = 0.0 if field.min is None else field.min
    high = low + _MOST if field.max is None else min(field.max, low + _MOST)
    if field.type == "int":
        first, count = math.ceil(low), max(1, math.floor(high) - math.ceil(low) + 1)
        return lambda number, entity, drawn: first + int(drawn * count)
    return lambda number, entity, drawn: round(low + drawn * (high - low), 2)


def _categories(schema: Schema, name: str) -> list[str]:
    found = [c for e in schema.features.expressions if name in e.fields for c in e.categories]
    return found or ["a", "b", "c", "d"]


def _iso(time_ms: int) -> str:
    return datetime.fromtimestamp(time_ms / 1_000, UTC).isoformat()


_TIMES: dict[str, Callable[[int], Any]] = {
    "epoch_ms": lambda time_ms: time_ms,
    "epoch_s": lambda time_ms: time_ms // _SECOND_MS,
    "iso8601": _iso,
}


def poison(event: Event, event_id_field: str, which: int) -> bytes:
    """A record that must become a dead letter, made of an event that is never written.

    Args:
        event: The event.
        event_id_field: The field with its id, which is required.
        which: Any number; chooses the kind of poison.
    """
    spoil = _POISON[which % len(_POISON)]
    return spoil(event.value, event_id_field)


def _without(value: bytes, name: str) -> bytes:
    return orjson.dumps({k: v for k, v in orjson.loads(value).items() if k != name})


_POISON: tuple[Callable[[bytes, str], bytes], ...] = (
    lambda value, name: b"ping",
    lambda value, name: b"",
    lambda value, name: value[: len(value) // 2],
    lambda value, name: b"[" + value + b"]",
    lambda value, name: value[:-1] + b',"x":"\xff\xfe"}',
    _without,
    lambda value, name: orjson.dumps({**orjson.loads(value), name: 7}),
    lambda value, name: b"[" * 5_000,
    lambda value, name: b'{"a":' * 5_000,
    lambda value, name: value + b" \x00",
)
