"""The baseline's features of one record: parsing, expressions, windows; without Flink."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

from udfs.definition.event import FieldSpec, LabelSpec
from udfs.definition.expression import ExpressionFeature
from udfs.definition.schema import Schema
from udfs.features.expressions import EARTH_RADIUS_KM

Event = dict[str, Any]
Entry = tuple[int, float, str]
"""One line of a key's history: event time in ms, value, id."""

_PYTHON_TYPES = {"string": (str,), "float": (float, int), "int": (int,), "bool": (bool,)}


def parse_event(text: str, fields: Sequence[FieldSpec]) -> Event | None:
    """The declared fields of a JSON record; None if it is not a valid event."""
    try:
        document = json.loads(text)
    except ValueError:
        return None
    if not isinstance(document, dict):
        return None
    event = {}
    for field in fields:
        value = document.get(field.name)
        if value is None:
            value = field.default
        if not _is_valid(field, value):
            return None
        event[field.name] = value
    return event


def _is_valid(field: FieldSpec, value: Any) -> bool:
    if value is None:
        return not field.required
    if type(value) not in _PYTHON_TYPES[field.type]:
        return False
    if field.min is not None and not value >= field.min:  # not-a-number fails every comparison
        return False
    return field.max is None or value <= field.max


def distance_km(lat1: float, lon1: float, lat2: float, lon2: float) -> float:
    """Great-circle distance by the haversine formula; degrees to kilometres."""
    lat1, lon1, lat2, lon2 = map(math.radians, (lat1, lon1, lat2, lon2))
    square = (
        math.sin((lat2 - lat1) / 2) ** 2
        + math.cos(lat1) * math.cos(lat2) * math.sin((lon2 - lon1) / 2) ** 2
    )
    return 2 * EARTH_RADIUS_KM * math.asin(math.sqrt(min(square, 1.0)))


def expression(spec: ExpressionFeature, time_field: str) -> Callable[[Event], list[Any]]:
    """A function that computes the columns of an expression feature of one event."""
    fields, categories, zone = spec.fields, spec.categories, ZoneInfo(spec.timezone)

    def distance(event: Event) -> list[Any]:
        points = [event[name] for name in fields]
        return [None if None in points else distance_km(*points)]

    def local_time(event: Event) -> datetime:
        return datetime.fromtimestamp(event[time_field] / 1_000, zone)

    return {
        "value": lambda event: [event[fields[0]]],
        "distance_km": distance,
        "hour_of_day": lambda event: [local_time(event).hour],
        "day_of_week": lambda event: [local_time(event).weekday()],
        "one_hot": lambda event: [int(event[fields[0]] == category) for category in categories],
    }[spec.type]


@dataclass(frozen=True)
class Window:
    """One sliding window: ``(t - delay - length, t - delay]``.

    Attributes:
        length_ms: Its length.
        delay_ms: How long before the event it ends.
        columns: Pairs of aggregate and feature name.
    """

    length_ms: int
    delay_ms: int
    columns: list[tuple[str, str]]

    def features(self, entries: list[Entry], time_ms: int, own: float) -> dict[str, Any]:
        """The window's features of an event at that time with that value of its own."""
        end_ms = time_ms - self.delay_ms
        start_ms = end_ms - self.length_ms
        values = [value for at_ms, value, _ in entries if start_ms < at_ms <= end_ms]
        count, total = len(values), sum(values)
        mean = total / count if count else None
        aggregates = {
            "count": count,
            "sum": total,
            "mean": mean,
            "ratio_to_mean": own / mean if mean else None,
        }
        return {name: aggregates[aggregate] for aggregate, name in self.columns}


def windows_of(schema: Schema, key: str, stream: str) -> list[Window]:
    """The windows that are kept by that key over ``events`` or ``labels``."""
    windows = []
    for spec in schema.features.of_stage(key):
        names = iter(spec.columns)
        if spec.stream == stream:
            for window in spec.windows:
                columns = [(aggregate, next(names)) for aggregate in spec.aggregates]
                windows.append(Window(window.reach_ms, spec.delay, columns))
    return windows


def value_field(schema: Schema, key: str) -> str:
    """The one event field that a key's windows aggregate.

    Raises:
        ValueError: there are several; this job keeps one.
    """
    windows = schema.features.of_stage(key)
    values = {str(w.value) for w in windows if w.stream == "events" and w.value}
    if len(values) != 1:
        raise ValueError(f"this job aggregates one field per key, {key} has {sorted(values)}")
    return values.pop()


class EventHistory:
    """What a key's operator does with an event and the key's history."""

    def __init__(self, schema: Schema, key: str) -> None:
        self._id = schema.event.id
        self._time = schema.event.time.field
        self._value = value_field(schema, key)
        self._windows = windows_of(schema, key, "events")
        self._horizon_ms = schema.horizon_ms(key, "events")
        self._dedupe_within_ms = schema.event.dedupe_within

    def is_duplicate(self, entries: list[Entry], event: Event) -> bool:
        """Whether the event's id was seen within the time in which repeats are dropped."""
        since_ms = event[self._time] - self._dedupe_within_ms
        event_id = event[self._id]
        return any(known == event_id and at_ms > since_ms for at_ms, _, known in entries)

    def add(self, entries: list[Entry], event: Event) -> list[Entry]:
        """Give the event its window features; returns the history with it, pruned."""
        time_ms, value = event[self._time], event[self._value]
        entries = [*entries, (time_ms, value, event[self._id])]
        for window in self._windows:
            event["features"].update(window.features(entries, time_ms, value))
        oldest_ms = max(at_ms for at_ms, _, _ in entries) - self._horizon_ms
        return [entry for entry in entries if entry[0] > oldest_ms]


class LabelHistory:
    """What the terminal's operator does with late labels."""

    def __init__(self, schema: Schema, key: str) -> None:
        assert schema.labels is not None
        self._labels: LabelSpec = schema.labels
        self._time = schema.event.time.field
        self._windows = windows_of(schema, key, "labels")
        self._horizon_ms = schema.horizon_ms(key, "labels")

    def learn(self, entries: list[Entry], label: Event) -> list[Entry]:
        """The history with a label; an earlier one of the same event is replaced."""
        spec = self._labels
        label_id = label[spec.id]
        others = [entry for entry in entries if entry[2] != label_id]
        return [*others, (label[spec.time], label[spec.value], label_id)]

    def add_features(self, entries: list[Entry], event: Event) -> list[Entry]:
        """Give the event its label features; returns the history without what is too old."""
        time_ms = event[self._time]
        for window in self._windows:
            event["features"].update(window.features(entries, time_ms, 0.0))
        return [entry for entry in entries if entry[0] > time_ms - self._horizon_ms]
