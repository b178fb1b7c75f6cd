"""A series: the values that an entity's events are kept with, one number an event.

A feature's ``value`` and ``where`` are computed when an event comes, for a whole batch, and only
the outcome is kept: NaN where the value is missing or ``where`` does not hold. Features that agree
in both share a series. A text becomes a number that stands for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, cast

import numpy as np

from udfs.batches.categories import codes_of
from udfs.batches.events import Events, FloatArray
from udfs.definition.event import EventSpec
from udfs.features.formulas import Columns, Formula, Kind, parse


class Series(NamedTuple):
    """What is kept of an event.

    Attributes:
        value: A field or a formula; none counts events.
        where: A formula; events for which it does not hold have no value.
        beside: The other coordinate of a point: without it the point is missing.
    """

    value: str | None
    where: str | None = None
    beside: str | None = None

    @property
    def name(self) -> str:
        """Names the series in stored state: it must never change for the same series."""
        parts = [self.value or "1"]
        if self.beside:
            parts.append(f"with {self.beside}")
        if self.where:
            parts.append(f"where {self.where}")
        return " ".join(parts)


def kinds_of(event: EventSpec) -> dict[str, Kind]:
    """What a formula may read of an event."""
    kinds: dict[str, Kind] = {"string": "text", "bool": "truth"}
    return {f.name: kinds.get(f.type, "number") for f in event.fields}


def columns_of(events: Events) -> Columns:
    """The events' fields as a formula reads them."""
    return {**events.numbers, **events.texts}


class SeriesReader:
    """Computes some series of events.

    Args:
        event: The events' schema.
        series: Which.
    """

    def __init__(self, event: EventSpec, series: Sequence[Series]) -> None:
        self.series = tuple(series)
        self._kinds = kinds_of(event)
        required = {f.name for f in event.fields if f.required}
        self.nullable = tuple(
            bool(s.where or s.beside) or not (s.value is None or s.value in required)
            for s in self.series
        )

    def read(self, events: Events) -> dict[str, FloatArray]:
        """Each series of the events by its name, float64 (n,); NaN where it has no value."""
        columns, n = columns_of(events), len(events)
        masks: dict[str, FloatArray] = {}
        return {s.name: self._one(s, columns, n, masks) for s in self.series}

    def _one(
        self, series: Series, columns: Columns, n: int, masks: dict[str, FloatArray]
    ) -> FloatArray:
        values = np.ones(n) if series.value is None else self._value(series.value, columns, n)
        if series.beside is not None:
            other = self._value(series.beside, columns, n)
            values = np.where(np.isnan(other), np.nan, values)
        if series.where is not None:
            if series.where not in masks:
                holds = self._formula(series.where).truths(columns, n)
                masks[series.where] = np.where(holds, 1.0, np.nan)
            values = values * masks[series.where]
        return values

    def _value(self, text: str, columns: Columns, n: int) -> FloatArray:
        if self._kinds.get(text) == "text":
            return codes_of(cast(Sequence[str | None], columns[text]))
        if text in self._kinds:
            return np.asarray(columns[text], np.float64)
        return self._formula(text).finite(columns, n)

    def _formula(self, text: str) -> Formula:
        return parse(text, self._kinds)
