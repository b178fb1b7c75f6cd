"""What a user declares about features of one event alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from udfs.definition.preparation import Encoding, encoding_mistakes
from udfs.definition.types import Mistake, Strict
from udfs.definition.window import is_timezone

_FIELDS_READ = {
    "value": 1,
    "distance_km": 4,
    "one_hot": 1,
    "category": 1,
    "hour_of_day": 0,
    "day_of_week": 0,
    "formula": 0,
}


class ExpressionFeature(Strict):
    """A feature of one event alone."""

    name: str = Field(description="the feature's name; one_hot appends _<category>")
    type: Literal[
        "value", "distance_km", "hour_of_day", "day_of_week", "one_hot", "formula", "category"
    ] = Field(
        description="value: the field itself; distance_km: great circle between two points; "
        "category: a text that training encodes"
    )
    fields: tuple[str, ...] = Field(
        (), description="the fields it reads; distance_km: lat, lon, lat, lon in degrees"
    )
    categories: tuple[str, ...] = Field(
        (), description="one_hot: a column each; an unknown category is 0 in all of them"
    )
    formula: str | None = Field(
        None, description="formula: computed from the event's fields, e.g. amount > 100"
    )
    timezone: str = Field("UTC", description="hour_of_day, day_of_week: IANA time zone")
    encoding: Encoding | None = Field(
        None, description="category: what the model gets; target: the category's mean label"
    )
    max_categories: int | None = Field(
        None,
        ge=1,
        description="category: the most frequent ones that are kept; none: all, of one_hot 32",
    )
    min_count: int = Field(
        1, ge=1, description="category: one in fewer rows trained on counts as unknown"
    )
    buckets: int = Field(16, ge=2, le=4_096, description="hashing: columns")
    smoothing: float = Field(
        20.0,
        ge=0,
        allow_inf_nan=False,
        description="target: rows with the mean label of all that are added to each category",
    )

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
        if (self.type == "formula") != (self.formula is not None):
            verb = "needs" if self.type == "formula" else "has no"
            yield Mistake(("formula",), f"type {self.type} {verb} formula")
        if not is_timezone(self.timezone):
            message = f"no time zone {self.timezone!r}; write one like UTC or Europe/Paris"
            yield Mistake(("timezone",), message)
        defaults = {name: field.default for name, field in type(self).model_fields.items()}
        yield from encoding_mistakes(self.type, self.encoding, self.__dict__, defaults)

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of the columns this feature makes."""
        if self.type == "one_hot":
            return tuple(f"{self.name}_{category}" for category in self.categories)
        return (self.name,)
