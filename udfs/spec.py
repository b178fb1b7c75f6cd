"""What a user declares about events, labels and features: typed, checked, engine-free.

These models are the ``event``, ``labels`` and ``features`` sections of a file in ``conf/``. Every
field says what it is and in which unit; an unknown key is refused. The job, the training and the
tests read the same objects, which is what keeps a live feature equal to a training one.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, NamedTuple, Self
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
    ValidationInfo,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

_DURATION = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)\s*$")
_UNIT_MS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_MAX_DURATION_MS = 36_500 * _UNIT_MS["d"]
_PYTHON_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "float": (float, int),
    "int": (int,),
    "bool": (bool,),
}


def parse_duration_ms(value: object) -> int:
    """Turn ``5m``, ``24h``, ``7d``, ``250ms`` or a whole number of milliseconds into milliseconds.

    Raises:
        ValueError: the text is not a duration, or one below 0 or above 100 years.
    """
    match = _DURATION.match(value) if isinstance(value, str) else None
    duration_ms: float
    if match is not None:
        duration_ms = float(match[1]) * _UNIT_MS[match[2]]
    elif isinstance(value, int) and not isinstance(value, bool):
        duration_ms = value
    else:
        raise ValueError(f"{value!r} is not a duration; write a number and ms, s, m, h or d: 5m")
    if not 0 <= duration_ms <= _MAX_DURATION_MS:
        raise ValueError(f"{value!r} is out of range: a duration is 0 to 36500d")
    return round(duration_ms)


def format_duration(duration_ms: int) -> str:
    """The shortest exact text of a duration: 300000 -> ``5m``; one day stays ``24h``."""
    for unit in ("d", "h", "m", "s"):
        is_whole = duration_ms > 0 and duration_ms % _UNIT_MS[unit] == 0
        if is_whole and (unit != "d" or duration_ms > _UNIT_MS["d"]):
            return f"{duration_ms // _UNIT_MS[unit]}{unit}"
    return f"{duration_ms}ms"


def duration_setting(value: object, info: ValidationInfo) -> int:
    """``parse_duration_ms``; in a file a number other than 0 needs its unit.

    One reader means seconds by ``poll: 2`` and another milliseconds.
    """
    is_bare = isinstance(value, int | float) and value != 0
    if is_bare and not isinstance(value, bool) and (info.context or {}).get(UNITS_NEEDED):
        raise ValueError(f"{value!r} has no unit; write {value}s or {value}ms")
    return parse_duration_ms(value)


UNITS_NEEDED = "units_needed"
"""Key of the validation context: whether durations must have a unit."""

DurationMs = Annotated[
    int, BeforeValidator(duration_setting), PlainSerializer(format_duration, return_type=str)
]


def _as_utc(moment: datetime) -> datetime:
    """The same moment in UTC; without an offset it is read as UTC, not as the machine's time."""
    return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)


UtcDatetime = Annotated[datetime, AfterValidator(_as_utc)]


class Mistake(NamedTuple):
    """A setting that cannot be used.

    Attributes:
        path: Where it is, as keys and list indices below the model that was checked.
        message: What to write instead.
    """

    path: tuple[int | str, ...]
    message: str


class Strict(BaseModel):
    """A settings model: unknown keys are refused, values never change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    def mistakes(self) -> Iterator[Mistake]:
        """What is wrong although every value by itself has the right type."""
        yield from ()

    @model_validator(mode="after")
    def _refuse(self) -> Self:
        if errors := [_as_error(mistake) for mistake in self.mistakes()]:
            raise ValidationError.from_exception_data(type(self).__name__, errors)
        return self


def _as_error(mistake: Mistake) -> InitErrorDetails:
    kind = PydanticCustomError("mistake", "{text}", {"text": mistake.message})
    return InitErrorDetails(type=kind, loc=mistake.path, input=None)


def _doubles(names: Iterable[str]) -> list[str]:
    counted = list(names)
    return sorted({n for n in counted if counted.count(n) > 1})


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
        if type(default) not in _PYTHON_TYPES[self.type]:
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
        if doubles := _doubles(f.name for f in self.fields):
            yield Mistake(("fields",), f"fields declared twice: {', '.join(doubles)}")
        yield from self.unfit(("id",), self.id, _is_key, "a required string")
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


def _is_key(field: FieldSpec) -> bool:
    return field.type == "string" and field.required


class LabelSpec(Strict):
    """The schema of a late label: a JSON object per record of the labels topic."""

    id: str = Field(description="field with the id of the labelled event")
    time: str = Field(description="field with the labelled event's own time, epoch milliseconds")
    key: str = Field(description="field with the key that label features are kept by")
    value: str = Field(description="field with the label, 0 or 1")


_FIELDS_READ = {"value": 1, "distance_km": 4, "one_hot": 1, "hour_of_day": 0, "day_of_week": 0}


def _is_timezone(name: str) -> bool:
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):  # OSError: a region, like Europe
        return False
    return True


class ExpressionFeature(Strict):
    """A feature of one event alone."""

    name: str = Field(description="the feature's name; one_hot appends _<category>")
    type: Literal["value", "distance_km", "hour_of_day", "day_of_week", "one_hot"] = Field(
        description="value: the field itself; distance_km: great circle between two points"
    )
    fields: tuple[str, ...] = Field(
        (), description="the fields it reads; distance_km: lat, lon, lat, lon in degrees"
    )
    categories: tuple[str, ...] = Field(
        (), description="one_hot: a column each; an unknown category is 0 in all of them"
    )
    timezone: str = Field("UTC", description="hour_of_day, day_of_week: IANA time zone")

    def mistakes(self) -> Iterator[Mistake]:
        """See the base class."""
        wanted, found = _FIELDS_READ[self.type], len(self.fields)
        if found != wanted:
            yield Mistake(
                ("fields",), f"{self.name!r} of type {self.type} reads {wanted} fields, not {found}"
            )
        if (self.type == "one_hot") != bool(self.categories):
            verb = "needs" if self.type == "one_hot" else "has no"
            yield Mistake(("categories",), f"type {self.type} {verb} categories")
        if not _is_timezone(self.timezone):
            message = f"no time zone {self.timezone!r}; write one like UTC or Europe/Paris"
            yield Mistake(("timezone",), message)

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of the columns this feature makes."""
        if self.type == "one_hot":
            return tuple(f"{self.name}_{category}" for category in self.categories)
        return (self.name,)


Aggregate = Literal["count", "sum", "mean", "ratio_to_mean"]


class WindowFeature(Strict):
    """Exact sliding windows per key: each event sees ``(t - delay - window, t - delay]``."""

    prefix: str = Field(description="start of the names: <prefix>_<aggregate>_<window>")
    key: str = Field(description="field that the windows are kept by")
    stream: Literal["events", "labels"] = Field("events", description="what is aggregated")
    value: str | None = Field(None, description="numeric field aggregated; count needs none")
    windows: tuple[DurationMs, ...] = Field(min_length=1, description="window lengths")
    delay: DurationMs = Field(0, description="how long before the event the windows end")
    aggregates: tuple[Aggregate, ...] = Field(
        min_length=1, description="ratio_to_mean: the event's own value over the window's mean"
    )

    def mistakes(self) -> Iterator[Mistake]:
        """See the base class."""
        if min(self.windows) <= 0:
            yield Mistake(("windows",), f"windows of {self.prefix!r} must be longer than 0")
        if self.value is None and set(self.aggregates) != {"count"}:
            message = f"{self.prefix!r} aggregates a value: name the field in value"
            yield Mistake(("value",), message)
        if self.stream == "labels" and "ratio_to_mean" in self.aggregates:
            message = f"{self.prefix!r}: an event has no label to divide; drop ratio_to_mean"
            yield Mistake(("aggregates",), message)

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of the columns, window by window and aggregate by aggregate."""
        return tuple(
            f"{self.prefix}_{aggregate}_{format_duration(window)}"
            for window in self.windows
            for aggregate in self.aggregates
        )

    @property
    def horizon_ms(self) -> int:
        """How far back before an event the windows look, in ms."""
        return max(self.windows) + self.delay


class FeatureSpec(Strict):
    """All features of a job, in the order in which the model gets them."""

    expressions: tuple[ExpressionFeature, ...] = Field(
        (), description="features of one event alone"
    )
    windows: tuple[WindowFeature, ...] = Field((), description="features over a key's history")

    @property
    def columns(self) -> tuple[str, ...]:
        """Every feature name: the expressions', then each key's, in stage order."""
        named = [c for e in self.expressions for c in e.columns]
        return tuple(named + [c for key in self.keys for w in self.of_key(key) for c in w.columns])

    @property
    def keys(self) -> tuple[str, ...]:
        """The distinct keys in the order of their first use; one keyed stage each."""
        return tuple(dict.fromkeys(w.key for w in self.windows))

    def of_key(self, key: str) -> tuple[WindowFeature, ...]:
        """The window features kept by that key."""
        return tuple(w for w in self.windows if w.key == key)

    def mistakes(self) -> Iterator[Mistake]:
        """See the base class."""
        if doubles := _doubles(self.columns):
            yield Mistake((), f"two features would have the same name: {', '.join(doubles)}")
        if not self.columns:
            yield Mistake((), "declare at least one feature")


class Schema(Strict):
    """Events, labels and features together, checked against each other.

    Attributes:
        event: The schema of an event.
        key: The field that Kafka records and the first stage are keyed by.
        labels: The schema of a label, or none.
        features: The declared features.
    """

    event: EventSpec
    key: str
    labels: LabelSpec | None = None
    features: FeatureSpec

    @property
    def stages(self) -> tuple[str, ...]:
        """The keys of the keyed stages: the record key first, it also removes duplicates."""
        return (self.key, *(k for k in self.features.keys if k != self.key))

    @property
    def columns(self) -> tuple[str, ...]:
        """Every feature name in the order of the stages that make them: the model's order."""
        named = [c for e in self.features.expressions for c in e.columns]
        for key in self.stages:
            named += [c for w in self.features.of_key(key) for c in w.columns]
        return tuple(named)

    def horizon_ms(self, key: str, stream: str) -> int:
        """How long a stage must keep a stream's entries: its longest window and the lateness."""
        spans = [w.horizon_ms for w in self.features.of_key(key) if w.stream == stream]
        if key == self.key and stream == "events":
            spans.append(self.event.dedupe_within)
        return max(spans, default=0) + self.event.time.allowed_lateness

    def mistakes(self) -> Iterator[Mistake]:
        """See the base class."""
        yield from self.event.unfit(("key",), self.key, _is_key, "a required string, as a key")
        for n, expression in enumerate(self.features.expressions):
            yield from self._expression_mistakes(n, expression)
        for n, window in enumerate(self.features.windows):
            path = ("features", "windows", n)
            key = (*path, "key")
            yield from self.event.unfit(key, window.key, _is_key, "a required string, as a key")
            if window.stream == "labels":
                yield from self._label_window_mistakes(path, window)
            elif window.value is not None:
                value = (*path, "value")
                yield from self.event.unfit(value, window.value, _is_amount, "a required number")

    def _expression_mistakes(self, n: int, expression: ExpressionFeature) -> Iterator[Mistake]:
        is_text = expression.type == "one_hot"
        wanted = f"a {'string' if is_text else 'number'} for type {expression.type}"
        for i, name in enumerate(expression.fields):
            path = ("features", "expressions", n, "fields", i)
            yield from self.event.unfit(path, name, lambda f: f.is_numeric != is_text, wanted)

    def _label_window_mistakes(
        self, path: tuple[int | str, ...], window: WindowFeature
    ) -> Iterator[Mistake]:
        if self.labels is None:
            message = f"{window.prefix!r} reads labels, but there is no labels section"
            yield Mistake((*path, "stream"), message)
            return
        if window.key != self.labels.key:
            yield Mistake((*path, "key"), f"must be the labels' own key {self.labels.key!r}")
        elif window.key == self.key:
            message = "labels enter after the first stage; they cannot be kept by the record key"
            yield Mistake((*path, "key"), f"{message} {self.key!r}")
        if window.value not in (None, self.labels.value):
            yield Mistake((*path, "value"), f"must be the labels' value {self.labels.value!r}")


def _is_amount(field: FieldSpec) -> bool:
    return field.is_numeric and field.required


def as_python(model: BaseModel) -> dict[str, Any]:
    """A settings model as plain JSON types, durations written as text."""
    return model.model_dump(mode="json")
