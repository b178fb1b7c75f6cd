"""A table's columns as the job's decoder would read them from JSON, whole columns at a time.

A row that is *sure* is one that the decoder would certainly accept, with these very values. All
others go to the decoder as JSON: what is refused, and why, is decided by it alone.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from udfs.batches.events import (
    BoolArray,
    CodedTexts,
    FloatArray,
    IntArray,
    epoch_ms_of_iso,
    keys_fit,
    numbers_fit,
    times_fit,
)
from udfs.definition.event import PYTHON_TYPES, EventSpec, FieldSpec

Rows = slice | npt.NDArray[np.intp]

_INT64_BEYOND = 2.0**63
_MOST_BYTES_OF_NUMBER = 32
_MOST_BYTES_OF_CHARACTER = 6  # as in "\\u0000"


@dataclass(frozen=True, slots=True)
class TextColumn:
    """A string field.

    Attributes:
        codes: Of each row, an index into ``values``; -1, the last of them, where it is missing.
        values: The different texts; None where it is no text.
        sure: Which rows the decoder would accept, bool (n,).
    """

    codes: IntArray
    values: list[str | None]
    sure: BoolArray

    def texts(self, rows: Rows) -> CodedTexts:
        """The texts of these rows; of a row that is not sure, anything."""
        codes = self.codes[rows]
        if codes.min(initial=0) < 0:
            codes = np.where(codes < 0, len(self.values) - 1, codes)
        return CodedTexts(codes, np.array(self.values, object))

    def most_bytes(self) -> IntArray:
        """The most bytes that each row's text takes in JSON."""
        lengths = np.array([len(value or "null") for value in self.values])
        return (2 + _MOST_BYTES_OF_CHARACTER * lengths)[self.codes]

    @property
    def longest(self) -> int:
        """The most bytes that any row's text takes in JSON."""
        longest = max(map(len, filter(None, self.values)), default=0)
        return 2 + _MOST_BYTES_OF_CHARACTER * max(longest, len("null"))


@dataclass(frozen=True, slots=True)
class NumberColumn:
    """A numeric field.

    Attributes:
        values: float64 (n,); NaN is missing.
        whole: The same as int64 (n,) where they are whole and the field is an int.
        sure: Which rows the decoder would accept, bool (n,).
    """

    values: FloatArray
    whole: IntArray
    sure: BoolArray


def text_column(spec: FieldSpec, column: pd.Series[Any], is_key: bool) -> TextColumn:
    """Read a string field.

    Args:
        spec: The field.
        column: Its column.
        is_key: Whether it names an entity or an event.
    """
    codes, found = _factorized(column)
    values, fits = _plain_texts(found)
    if is_key:
        fits[fits] = keys_fit(spec.name, [v for v in values if v is not None])
    default = spec.default if isinstance(spec.default, str) else None
    sure = np.append(fits, not spec.required)[codes]
    return TextColumn(codes, [*values, default], sure)


def _factorized(column: pd.Series[Any]) -> tuple[IntArray, list[Any]]:
    """Codes, -1 where a value is missing, and the value of each code."""
    if isinstance(column.dtype, pd.CategoricalDtype):
        return column.cat.codes.to_numpy(np.int64), column.cat.categories.tolist()
    if column.dtype.kind == "M":  # as text, a time stands as ``str`` writes it
        column = column.astype(object).map(str, na_action="ignore")
    elif column.dtype.kind != "O":
        return np.zeros(len(column), np.int64), [None]
    try:
        codes, found = pd.factorize(column.to_numpy(object))
    except TypeError:  # a list or an object in it
        return np.zeros(len(column), np.int64), [None]
    return codes.astype(np.int64, copy=False), found.tolist()


def _plain_texts(found: list[Any]) -> tuple[list[str | None], BoolArray]:
    """The values that are texts, None for others; and which are."""
    try:
        "".join(found).encode()
        if set(map(type, found)) <= {str}:
            return found, np.ones(len(found), np.bool_)
    except (TypeError, UnicodeEncodeError):
        pass
    values = [v if type(v) is str and _is_utf8(v) else None for v in found]
    return values, np.array([v is not None for v in values], np.bool_)


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair
        return False
    return True


def number_column(spec: FieldSpec, column: pd.Series[Any]) -> NumberColumn:
    """Read a numeric field."""
    values, whole, sure = _numbers(spec, column)
    missing = column.isna().to_numpy(np.bool_)
    if missing.any():
        default = np.nan if spec.default is None else float(spec.default)
        values = np.where(missing, default, values)
        sure = np.where(missing, not spec.required, sure)
    return NumberColumn(values, whole, sure & numbers_fit(spec, values))


_Numbers = tuple[FloatArray, IntArray, BoolArray]


def _numbers(spec: FieldSpec, column: pd.Series[Any]) -> _Numbers:
    """Values, the same as whole numbers, and which JSON surely keeps as the field's type."""
    match (spec.type, column.dtype):
        case ("float" | "int", np.dtype(kind="i")) | ("bool", np.dtype(kind="b")):
            whole = column.to_numpy(np.int64)
            return whole.astype(np.float64), whole, np.ones(len(whole), np.bool_)
        case ("float", np.dtype(kind="f", itemsize=4 | 8)):
            values = column.to_numpy(np.float64)
            return values, np.zeros(len(values), np.int64), ~np.isinf(values)
        case ("int", np.dtype(kind="f", itemsize=4 | 8)):
            # A table stores whole numbers as floats as soon as one of them is missing.
            values = column.to_numpy(np.float64)
            is_whole = (np.trunc(values) == values) & (np.abs(values) < _INT64_BEYOND)
            whole = np.where(is_whole, values, 0.0).astype(np.int64)
            return whole.astype(np.float64), whole, is_whole
        case _:
            return _numbers_of_objects(spec, column)


def _numbers_of_objects(spec: FieldSpec, column: pd.Series[Any]) -> _Numbers:
    found: list[Any] = column.astype(object).tolist()
    allowed, limit = PYTHON_TYPES[spec.type], _INT64_BEYOND
    sure = [type(v) in allowed and -limit < v < limit for v in found]
    plain = [v if is_sure else 0 for v, is_sure in zip(found, sure, strict=True)]
    whole = np.array(plain, np.int64) if spec.type == "int" else np.zeros(len(plain), np.int64)
    return np.array(plain, np.float64), whole, np.array(sure, np.bool_)


@dataclass(frozen=True, slots=True)
class Columns:
    """The fields of a table.

    Attributes:
        times: Event times in epoch ms, int64 (n,).
        texts: The string fields by name.
        numbers: The numeric fields by name.
        sure: Which rows the decoder would accept, bool (n,).
    """

    times: IntArray
    texts: dict[str, TextColumn]
    numbers: dict[str, NumberColumn]
    sure: BoolArray


def read_columns(
    event: EventSpec, keys: Collection[str], frame: pd.DataFrame, kafka_ms: int
) -> Columns:
    """Read the declared fields of a table.

    Args:
        event: The events' schema.
        keys: The fields that name an entity.
        frame: One row per event; the column of an optional field may be absent.
        kafka_ms: When Kafka is taken to have got them.
    """
    rows, texts, numbers = len(frame), {}, {}
    for spec in event.fields:
        column = frame.get(spec.name)
        if column is None:
            column = pd.Series([None] * rows, dtype=object)
        if spec.is_numeric:
            numbers[spec.name] = number_column(spec, column)
        else:
            texts[spec.name] = text_column(spec, column, spec.name in keys or spec.name == event.id)
    written, is_time = _written_times(event, texts, numbers)
    times, is_believed = times_fit(event.time, written, np.full(rows, kafka_ms))
    everywhere = [c.sure for c in texts.values()] + [c.sure for c in numbers.values()]
    sure = np.logical_and.reduce([is_time & is_believed, *everywhere])
    return Columns(times, texts, numbers, sure & _is_short(event, texts, numbers))


def _written_times(
    event: EventSpec, texts: dict[str, TextColumn], numbers: dict[str, NumberColumn]
) -> tuple[IntArray, BoolArray]:
    if event.time.format != "iso8601":
        column = numbers[event.time.field]
        return column.whole, column.sure
    text = texts[event.time.field]
    times = [_iso_or_none(value) for value in text.values]
    return (
        np.array([time or 0 for time in times], np.int64)[text.codes],
        np.array([time is not None for time in times], np.bool_)[text.codes],
    )


def _iso_or_none(text: str | None) -> int | None:
    try:
        return None if text is None else epoch_ms_of_iso(text)
    except (ValueError, OverflowError):
        return None


def _is_short(
    event: EventSpec, texts: dict[str, TextColumn], numbers: dict[str, NumberColumn]
) -> BoolArray:
    """Which rows are records of at most ``max_bytes``, however their characters are escaped."""
    names = sum(_MOST_BYTES_OF_CHARACTER * len(name) + 4 for name in (*texts, *numbers))
    rest = event.max_bytes - 2 - names - _MOST_BYTES_OF_NUMBER * len(numbers)
    if sum(column.longest for column in texts.values()) <= rest:
        return np.ones(1, np.bool_)
    lengths: IntArray = np.sum([column.most_bytes() for column in texts.values()], axis=0)
    return lengths <= rest
