"""Which features the topics of events and labels alone decide; the others are not recomputed."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from udfs.batches.events import Events, FloatArray
from udfs.definition.schema import Schema
from udfs.features.formulas import Kind, parse
from udfs.features.series import kinds_of


def not_recomputed(schema: Schema) -> frozenset[str]:
    """The columns that look-ups bring, or that read a table's field, directly or by a formula."""
    fields, kinds = _table_fields(schema), kinds_of(schema.known)
    unknown = set(schema.lookup_columns)
    for expression in schema.features.expressions:
        texts = [*expression.fields, *([expression.formula] if expression.formula else ())]
        if _names(texts, kinds) & fields:
            unknown |= set(expression.columns)
    for window in schema.features.windows:
        values = window.value if isinstance(window.value, tuple) else (window.value,)
        texts = [text for text in (*values, window.where) if text]
        if window.stream == "events" and _names(texts, kinds) & fields:
            unknown |= set(window.columns)
    known_to_formulas = {**schema.formula_kinds}
    for formula in schema.features.formulas:
        if _names([formula.formula], known_to_formulas) & (fields | unknown):
            unknown.add(formula.name)
        known_to_formulas[formula.name] = "number"
    return frozenset(unknown)


def _names(texts: Iterable[str], kinds: dict[str, Kind]) -> set[str]:
    found: set[str] = set()
    for text in texts:
        found |= {text} if text in kinds else set(parse(text, kinds).names)
    return found


def _table_fields(schema: Schema) -> set[str]:
    return {field.name for table in schema.tables for field in table.event_fields}


def without_tables(schema: Schema, events: Events) -> Events:
    """The events with the tables' fields, all of them missing."""
    missing: FloatArray = np.full(len(events), np.nan)
    for table in schema.tables:
        for field in table.event_fields:
            if field.is_numeric:
                events.numbers[field.name] = missing
            else:
                events.texts[field.name] = [None] * len(events)  # type: ignore[list-item]
    return events
