"""What each feature of a job means, in words: for ``streamscore features list`` and ``docs``."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Literal

from udfs.definition.enrichment import LookupSpec
from udfs.definition.expression import ExpressionFeature
from udfs.definition.feature import FormulaFeature, WindowFeature
from udfs.definition.schema import Schema
from udfs.definition.types import format_duration
from udfs.definition.window import Window
from udfs.features import aggregates as a
from udfs.features.aggregates import Named, parse_aggregate

Kind = Literal["expression", "window", "formula", "lookup"]

_EXPRESSIONS = {
    "value": "the field {0}",
    "distance_km": "great circle from ({0}, {1}) to ({2}, {3}), in km",
    "hour_of_day": "hour of the event's time in {zone}, 0 to 23",
    "day_of_week": "day of the event's time in {zone}, Monday is 0",
    "one_hot": "1 if {0} is {category}, else 0",
    "category": "the code of {0}'s text; the model gets what its encoding ({encoding}) makes of it",
    "formula": "{formula}",
}
_EXPRESSION_UNITS = {
    "distance_km": "km",
    "hour_of_day": "h",
    "day_of_week": "day",
    "one_hot": "0 or 1",
    "category": "code",
}
_UNITS = {
    a.COUNT: "events",
    a.RATIO_TO_MEAN: "ratio",
    a.ZSCORE: "deviations",
    a.SINCE_PREVIOUS: "s",
    a.SINCE_FIRST: "s",
    a.DISTINCT: "values",
    a.ENTROPY: "nats",
    a.OWN_SHARE: "0 to 1",
    a.DISTANCE_KM: "km",
    a.SPEED_KMH: "km/h",
}
_MISSING = {
    "if none": "if none has a value",
    "at 0": "if the mean is 0",
    "where std is 0": "if the deviation is 0 or missing",
    "below 2 events": "below 2 events",
    "below 2 different times": "below 2 events of different times",
    "if no time passed": "if no time passed since, or there is none before",
}
_NEVER_MISSING = ("hour_of_day", "day_of_week", "one_hot")


@dataclass(frozen=True, slots=True)
class Described:
    """One column of the features.

    Attributes:
        name: The column.
        kind: Where it comes from.
        stage: The keyed stage that computes it; empty for a feature of one event, or a formula.
        stream: ``events`` or ``labels`` for a window, else empty.
        aggregate: As named in the settings, else the expression's type, else ``formula``.
        window: As written in the settings; empty without one.
        reads: Field, formula or point that it is computed from; empty if it counts.
        where: Its filter; empty if it has none.
        delay: How long before the event the window ends; empty if it does not.
        meaning: A sentence.
        unit: Of its value; "as" a field: in that field's own unit.
        missing: When it has no value.
        cost: Of one event.
    """

    name: str
    kind: Kind
    stage: str
    stream: str
    aggregate: str
    window: str
    reads: str
    where: str
    delay: str
    meaning: str
    unit: str
    missing: str
    cost: str


def describe(schema: Schema) -> list[Described]:
    """Every column, in the order of ``schema.columns``."""
    found = [d for e in schema.features.expressions for d in _of_expression(schema, e)]
    for stage in schema.stages:
        for window in schema.features.of_stage(stage):
            found += _of_window(stage, window)
    found += [_of_formula(formula) for formula in schema.features.formulas]
    return found + [d for lookup in schema.lookups for d in _of_lookup(lookup)]


def _of_expression(schema: Schema, spec: ExpressionFeature) -> Iterator[Described]:
    optional = {f.name for f in schema.known.fields if not f.required and f.default is None}
    for number, name in enumerate(spec.columns):
        category = spec.categories[number] if spec.categories else ""
        meaning = _EXPRESSIONS[spec.type].format(
            *spec.fields,
            zone=spec.timezone,
            category=repr(category),
            encoding=spec.encoding,
            formula=spec.formula,
        )
        yield Described(
            name=name,
            kind="expression",
            stage="",
            stream="",
            aggregate=spec.type,
            window="",
            reads=spec.formula or ", ".join(spec.fields),
            where="",
            delay="",
            meaning=f"Of the event alone: {meaning}.",
            unit=_EXPRESSION_UNITS.get(spec.type, f"as {spec.formula or ', '.join(spec.fields)}"),
            missing=_missing_expression(spec, optional),
            cost="O(1)",
        )


def _missing_expression(spec: ExpressionFeature, optional: set[str]) -> str:
    if spec.type in _NEVER_MISSING:
        return "never"
    if spec.type == "formula":
        return "if it reads a missing number, or the result is infinite"
    lacking = [name for name in spec.fields if name in optional]
    return f"if {' or '.join(lacking)} is missing" if lacking else "never"


def _of_window(stage: str, spec: WindowFeature) -> Iterator[Described]:
    pairs = product(spec.windows, spec.aggregates)
    for name, (window, aggregate) in zip(spec.columns, pairs, strict=True):
        named = parse_aggregate(aggregate)
        what, missing = _said(named)
        yield Described(
            name=name,
            kind="window",
            stage=stage,
            stream=spec.stream,
            aggregate=aggregate,
            window=window_text(window),
            reads=reads_of(spec),
            where=spec.where or "",
            delay=format_duration(spec.delay) if spec.delay else "",
            meaning=f"Over {_entries(stage, spec)} {_span(window, spec.delay)}: {what}.",
            unit=_unit(named, spec),
            missing=missing,
            cost=named.aggregate.cost,
        )


def _of_formula(spec: FormulaFeature) -> Described:
    return Described(
        name=spec.name,
        kind="formula",
        stage="",
        stream="",
        aggregate="formula",
        window="",
        reads=spec.formula,
        where="",
        delay="",
        meaning=f"From the features before it: {spec.formula}.",
        unit="as computed",
        missing="if it reads a missing number, or the result is infinite",
        cost="O(1)",
    )


def _of_lookup(spec: LookupSpec) -> Iterator[Described]:
    for name, field in zip(spec.columns, spec.fields, strict=True):
        default = field.default
        yield Described(
            name=name,
            kind="lookup",
            stage="",
            stream="",
            aggregate="look-up",
            window="",
            reads=f"{spec.name}[{spec.key}].{field.name}",
            where="",
            delay="",
            meaning=f"What the store {spec.name} has as {field.name} for the event's {spec.key}.",
            unit="as stored",
            missing="if the store has none or is late" if default is None else f"never: {default}",
            cost="a call per batch",
        )


def reads_of(spec: WindowFeature) -> str:
    """What a window feature aggregates; empty if it counts."""
    return ", ".join(spec.value) if isinstance(spec.value, tuple) else spec.value or ""


def window_text(window: Window) -> str:
    """A window much as it is written in the settings: ``5m``, ``events: 10``."""
    match window.kind:
        case "sliding":
            text = format_duration(window.sliding or 0)
        case "events":
            text = f"events: {window.events}"
        case "first":
            text = f"first: {window.first}"
        case "day":
            text = f"day: {window.day}"
        case kind:
            text = f"{kind}: {format_duration(getattr(window, kind))}"
    text += f" every {format_duration(window.every)}" if window.every else ""
    return text + (f" within {format_duration(window.within)}" if window.within else "")


def _said(named: Named) -> tuple[str, str]:
    """What an aggregate is, and when it is missing."""
    number = f"{named.number:g}"
    what = named.aggregate.meaning.replace("k-th", f"{number}-th").replace("q-th", f"{number}-th")
    parts = re.split(r"; (?=missing|0 if none)", what)
    if len(parts) == 2:
        rule = parts[1].removeprefix("missing ")
        return parts[0], f"never: {rule}" if rule == "0 if none" else _MISSING[rule]
    if named.aggregate.name in ("distinct", "top<k>"):
        return what, "a number's top: if there are fewer; else never"
    return what, "if there is no such event"


def _unit(named: Named, spec: WindowFeature) -> str:
    code = named.aggregate.code
    if code == a.COUNT and any(w.half_life for w in spec.windows):
        return "weighed events"
    own = f"as {reads_of(spec)}"
    if code == a.SLOPE:
        return f"{own}, per s"
    return _UNITS.get(code, f"{own}, squared" if code == a.VARIANCE else own)


def _entries(stage: str, spec: WindowFeature) -> str:
    text = f"`{reads_of(spec)}` of the {spec.stream}" if spec.value else f"the {spec.stream}"
    text += f" of the same {stage.replace('+', ' and ')}"
    return text + (f" with {spec.where}" if spec.where else "")


def _span(window: Window, delay_ms: int) -> str:
    end = (
        f"{format_duration(delay_ms)} before the event"
        if delay_ms
        else "the event, itself included"
    )
    reach = format_duration(window.reach_ms)
    match window.kind:
        case "sliding" if window.panes:
            length = format_duration(window.sliding or 0)
            pane = format_duration(window.panes)
            return f"in the {length} up to {end}, and before that since the last multiple of {pane}"
        case "sliding":
            return f"in the {reach} up to {end}"
        case "events":
            return f"that are the newest {window.events} up to {end}, none older than {reach}"
        case "first":
            return f"that are the oldest {window.first} of all up to {end}, kept for good"
        case "session":
            gap = format_duration(window.session or 0)
            return f"up to {end} with no gap above {gap}, none older than {reach}"
        case "tumbling":
            return f"since the last multiple of {reach} (UTC), up to {end}"
        case "hopping":
            length = format_duration(window.hopping or 0)
            every = format_duration(window.every or 0)
            return f"in the newest whole {length} that begins every {every} and is past at {end}"
        case "day":
            return f"since midnight in {window.day}, up to {end}"
        case _:
            half = format_duration(window.half_life or 0)
            return f"in the {reach} up to {end}, each weighing half as much per {half} of age"
