"""What a user declares about events and late labels: fields, times, ids."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Literal

from pydantic import Field

from udfs.definition.types import DurationMs, Mistake, Strict, UtcDatetime, doubles

PYTHON_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "float": (float, int),
    "int": (int,),
    "bool": (bool,),
}
"""What JSON's values of a declared type are in Python."""


class FieldSpec(Strict):
    """One field of an event."""

    name: str = Field(description="key in the event's JSON object")
    type: Literal["string", "float", "int", "bool"] = Field(description="JSON type of the value")
    required: bool = Field(True, description="absent or null sends the event to the dead letters")
    default: str | float | int | bool | None = Field(
        None, description="value of an absent or null optional field; none means missing"
    )
    min: float | None = Field(None, description="smallest allowed number, in the field's own unit")
    max: float | None = Field(None, description="largest allowed number, in the field's own unit")
    sensitive: Literal["hash", "drop"] | None = Field(
        None,
        description="outputs show a keyed hash instead, or nothing: alerts' events, dead letters, "
        "ids and keys; needs `privacy`",
    )

    @property
    def is_numeric(self) -> bool:
        """Whether the field holds a number (or a truth value, counted as 0 and 1)."""
        return self.type != "string"

    def mistakes(self) -> Iterator[Mistake]:
        """See the base class."""
        if self.type == "string" and (self.min is not None or self.max is not None):
            message = f"field {self.name!r} is a string: it can have neither min nor max"
            yield Mistake((), message)
        elif self._low > self._high:
            yield Mistake(("min",), f"field {self.name!r}: min {self.min} is above max {self.max}")
        elif self.default is not None:
            yield from self._default_mistakes(self.default)

    @property
    def _low(self) -> float:
        return -math.inf if self.min is None else self.min

    @property
    def _high(self) -> float:
        return math.inf if self.max is None else self.max

    def _default_mistakes(self, default: str | float | int | bool) -> Iterator[Mistake]:
        what = f"field {self.name!r}"
        if self.required:
            yield Mistake(("default",), f"{what} is required: a default would never be used")
        if type(default) not in PYTHON_TYPES[self.type]:
            yield Mistake(("default",), f"{what}: default {default!r} is not a {self.type}")
        elif not isinstance(default, str) and not (
            math.isfinite(default) and self._low <= default <= self._high
        ):
            yield Mistake(("default",), f"{what}: default {default!r} is out of range")


class TimeSpec(Strict):
    """Where the event time is, and which times are believed."""

    field: str = Field(description="field that holds the event time")
    format: Literal["epoch_ms", "epoch_s", "iso8601"] = Field(
        "epoch_ms", description="how the time is written; ISO 8601 without an offset is UTC"
    )
    earliest: UtcDatetime = Field(
        datetime.fromisoformat("2000-01-01T00:00:00+00:00"),
        description="an older event time is a dead letter; without an offset it is UTC",
    )
    max_future: DurationMs = Field(
        3_600_000,
        description="an event time this much after the record's Kafka time is a dead letter",
    )
    allowed_lateness: DurationMs = Field(
        3_600_000,
        description="features are exact for events at most this much older than their key's newest",
    )

    @property
    def earliest_ms(self) -> int:
        """The oldest believed event time, in epoch milliseconds."""
        return round(self.earliest.timestamp() * 1_000)


class EventSpec(Strict):
    """The schema of an event: a JSON object per Kafka record."""

    id: str = Field(description="field with the event's unique id; repeats are duplicates")
    time: TimeSpec = Field(description="event time")
    fields: tuple[FieldSpec, ...] = Field(description="the fields the job reads; others are kept")
    dedupe_within: DurationMs = Field(
        86_400_000, description="an id seen again within this event time is a duplicate"
    )
    max_bytes: int = Field(
        1_048_576, gt=0, description="a larger record is a dead letter, in bytes"
    )

    def field(self, name: str) -> FieldSpec:
        """The declared field of that name.

        Raises:
            ValueError: no such field is declared.
        """
        for spec in self.fields:
            if spec.name == name:
                return spec
        known = ", ".join(f.name for f in self.fields)
        raise ValueError(f"no field {name!r} in event.fields; declared are: {known}")

    def mistakes(self) -> Iterator[Mistake]:
        """See the base class."""
        if twice := doubles(f.name for f in self.fields):
            yield Mistake(("fields",), f"fields declared twice: {', '.join(twice)}")
        yield from self.unfit(("id",), self.id, is_key, "a required string")
        time_type = "string" if self.time.format == "iso8601" else "int"
        yield from self.unfit(
            ("time", "field"),
            self.time.field,
            lambda f: f.type == time_type and f.required,
            f"a required {time_type} for format {self.time.format}",
        )

    def unfit(
        self,
        path: tuple[int | str, ...],
        name: str,
        fits: Callable[[FieldSpec], bool],
        wanted: str,
    ) -> Iterator[Mistake]:
        """The mistake of a setting that names a field: it is not declared, or does not fit."""
        try:
            field = self.field(name)
        except ValueError as exc:
            yield Mistake(path, str(exc))
            return
        if not fits(field):
            yield Mistake(path, f"field {name!r} must be {wanted}")


def is_key(field: FieldSpec) -> bool:
    """Whether a field can name an entity: it is text and always there."""
    return field.type == "string" and field.required


class LabelSpec(Strict):
    """The schema of a late label: a JSON object per record of the labels topic."""

    id: str = Field(description="field with the id of the labelled event")
    time: str = Field(description="field with the labelled event's own time, epoch milliseconds")
    key: str = Field(description="field with the key that label features are kept by")
    value: str = Field(description="field with the label, 0 or 1")
