"""A reference table in memory: rows by key, in versions where the event's time decides.

Pure: what reads a topic or a file puts rows in (``udfs.enrichment.table_readers``), an operator
joins them to events. One thread writes, others read: a key's rows are replaced by one assignment,
so a reader sees the old ones or the new ones.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from udfs.batches.events import Events
from udfs.definition.enrichment import TableSpec
from udfs.definition.event import PYTHON_TYPES, FieldSpec

__all__ = ["ALWAYS", "Row", "TableRecordError", "VersionedTable"]

Row = tuple[Any, ...]
"""The fields' values: text or None, a float or NaN."""

ALWAYS = -(2**63)
"""The time of a row that holds at every time."""


class TableRecordError(ValueError):
    """A table's record cannot be used; the text says why."""


class _Versions(NamedTuple):
    """A key's rows by the time since which they hold, the oldest first; None: no row."""

    times: tuple[int, ...]
    rows: tuple[Row | None, ...]


_NEVER = _Versions((ALWAYS,), (None,))


class VersionedTable:
    """The rows of one table.

    With ``as_of: latest`` a key has the row that came last. With ``as_of: event_time`` it has
    ``versions`` of them at most, none that was replaced longer than ``keep`` before the table's
    newest record; an event sees the one that held at its time, and none if it is older than all.

    Args:
        spec: What the user declared.
    """

    def __init__(self, spec: TableSpec) -> None:
        self.spec = spec
        self._fields = spec.event_fields
        self._nothing: Row = tuple(_value(field, None) for field in self._fields)
        self._is_versioned = spec.as_of == "event_time"
        self._known: dict[str, _Versions] = {}
        self._rows = 0
        self._newest = ALWAYS

    def __len__(self) -> int:
        """How many keys have a row now."""
        return self._rows

    def row_of(self, document: Any) -> Row:
        """Check a record's value.

        Raises:
            TableRecordError: It is no object, or a field has another type than declared.
        """
        if not isinstance(document, Mapping):
            raise TableRecordError(f"it is a JSON {type(document).__name__}, not an object")
        names = (field.name for field in self.spec.fields)
        pairs = zip(self._fields, names, strict=True)
        return tuple(_value(field, document.get(name)) for field, name in pairs)

    def put(self, key: str, row: Row | None, time_ms: int) -> None:
        """Add a row, or with None take the key's away.

        Args:
            key: What events name it by.
            row: From ``row_of``.
            time_ms: Since when it holds, epoch ms; of two of one time the later put counts.
        """
        old = self._known.get(key)
        self._newest = max(self._newest, time_ms)
        new = self._with(old, row, time_ms) if self._is_versioned else _Versions((ALWAYS,), (row,))
        self._rows += _has_row(new) - _has_row(old)
        if new == _NEVER:
            self._known.pop(key, None)
        else:  # one that has no row any more says so, should an older record come late
            self._known[key] = new

    def _with(self, old: _Versions | None, row: Row | None, time_ms: int) -> _Versions:
        times, rows = old or _Versions((), ())
        at = bisect_right(times, time_ms)
        before = at - 1 if at and times[at - 1] == time_ms else at
        times = (*times[:before], time_ms, *times[at:])
        rows = (*rows[:before], row, *rows[at:])
        horizon = self._newest - self.spec.keep
        first = max(len(times) - self.spec.versions, bisect_right(times, horizon) - 1, 0)
        return _Versions(times[first:], rows[first:])

    def at(self, key: str | None, time_ms: int) -> Row:
        """The row that held at a time, epoch ms; the defaults if there was none."""
        found = self._known.get(key) if key is not None else None
        if found is None:
            return self._nothing
        times, rows = found
        row = rows[-1] if times[-1] <= time_ms else _earlier(found, time_ms)
        return self._nothing if row is None else row

    def keys(self) -> set[str]:
        """Every key that has a row, or had one that is still known."""
        return set(self._known)

    def join(self, events: Events) -> Events:
        """The events with the table's fields."""
        keys = events.texts[self.spec.key]
        rows = [self.at(k, t) for k, t in zip(keys, events.times.tolist(), strict=True)]
        columns = zip(*rows, strict=True) if rows else ((),) * len(self._fields)
        texts, numbers = dict(events.texts), dict(events.numbers)
        for field, column in zip(self._fields, columns, strict=True):
            if field.is_numeric:
                numbers[field.name] = np.array(column, np.float64)
            else:
                texts[field.name] = list(column)
        return replace(events, texts=texts, numbers=numbers)


def _has_row(versions: _Versions | None) -> bool:
    return versions is not None and versions.rows[-1] is not None


def _earlier(versions: _Versions, time_ms: int) -> Row | None:
    at = bisect_right(versions.times, time_ms)
    return versions.rows[at - 1] if at else None


def _value(field: FieldSpec, value: Any) -> Any:
    """A field's value as events hold it."""
    if value is None:
        value = field.default
    if value is None:
        return math.nan if field.is_numeric else None
    if type(value) not in PYTHON_TYPES[field.type]:
        raise TableRecordError(f"{field.name} must be {field.type}, is {type(value).__name__}")
    if not field.is_numeric:
        return value
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise TableRecordError(f"{field.name} is too large or not finite")
    return number
