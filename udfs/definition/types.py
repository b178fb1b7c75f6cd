"""Settings models: strict ones, durations with units, and mistakes that say where they are."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import Annotated, Any, NamedTuple, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    PlainSerializer,
    ValidationError,
    ValidationInfo,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

_DURATION = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)\s*$")
_UNIT_MS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_MAX_DURATION_MS = 36_500 * _UNIT_MS["d"]


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


def doubles(names: Iterable[str]) -> list[str]:
    """The names that come more than once, sorted."""
    counted = list(names)
    return sorted({n for n in counted if counted.count(n) > 1})


def as_python(model: BaseModel) -> dict[str, Any]:
    """A settings model as plain JSON types, durations written as text."""
    return model.model_dump(mode="json")
