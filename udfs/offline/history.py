"""A table as the live job would have read it.

Rows pass the job's own ``Decoder``, as JSON; those that it would surely accept are read from the
table's columns instead, which is a hundred times faster and comes to the same. So a row that the
job would refuse is no training row either.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import orjson
import pandas as pd

from udfs.batches.batch import LabelBatch
from udfs.batches.events import (
    KAFKA_TIME_MS,
    OFFSET,
    Decoded,
    Decoder,
    Events,
    FloatArray,
    IntArray,
    Reject,
)
from udfs.definition.event import FieldSpec
from udfs.definition.schema import Schema
from udfs.enrichment.table_readers import Tables
from udfs.offline.rolling import Order, largest_of, roll_up
from udfs.offline.table_columns import Columns, read_columns

_DECODE_ROWS = 4_096
_NO_KAFKA_TIME_MS = 1 << 62  # later than any event: nothing is too far in the future

NO_TABLES = Tables()

Progress = Callable[[str, float], None]
"""Called with what is being done and which part of that, 0 to 1, is done."""


class HistoryError(ValueError):
    """A history cannot be used as it is; the text says what is wrong."""


@dataclass(frozen=True, slots=True)
class History:
    """A table as the live job would have read it.

    Attributes:
        events: The accepted rows in the table's order; ``positions[:, OFFSET]`` is each one's row
            in the table, its Kafka time is its event time. ``raw`` is the row as JSON where
            another event has the same id, and empty elsewhere.
        rejects: The rows the job would have sent to the dead letters; ``offset`` is their row.
        duplicates: How many readings a roll-up dropped as repeats of others.
        window_of: With a roll-up, the event that each row of the table is in, -1 for none.
    """

    events: Events
    rejects: list[Reject]
    duplicates: int = 0
    window_of: IntArray | None = None

    @property
    def table_rows(self) -> IntArray:
        """The row in the table of each event, of a window its newest reading's; int64 (n,)."""
        return self.events.positions[:, OFFSET]

    def labels(self, of_rows: FloatArray) -> FloatArray:
        """The label of each event, of a window the largest of its readings'; float64 (n,).

        Args:
            of_rows: The label of each row of the table; NaN where there is none.
        """
        if self.window_of is None:
            return of_rows[self.table_rows]
        return largest_of(of_rows, self.window_of, len(self.events))


def silent(_step: str, _done: float) -> None:
    """A progress callback that shows nothing."""


def history_of(
    schema: Schema,
    frame: pd.DataFrame,
    progress: Progress = silent,
    tables: Tables = NO_TABLES,
    order: Order = "time",
) -> History:
    """Read a table as the live job reads its topic.

    Columns that the schema does not name are ignored. A missing value (NaN, None, NaT, pandas' NA)
    is a JSON null. The column of an optional field may be absent: all its values are missing then.
    So are a look-up's, whose column has the feature's name: what a store said at an event's time
    is known from the predictions of then, and from nowhere else.

    Args:
        schema: The job's schema.
        frame: One row per event, columns named as the event's fields.
        progress: Shown while it is read.
        tables: The schema's reference tables; read to their present end and joined.
        order: For a roll-up: as if each reading had arrived at its own time, or in the order given.

    Raises:
        HistoryError: the column of a required field is absent, or the job would accept no row.
        TableError: a table could not be loaded.
    """
    joined = tables.open()
    try:
        history = _history_of(schema, frame, progress)
        if schema.rollup is not None:
            history = _rolled_up(schema, history, len(frame), order)
        events = _with_lookups(schema, joined.join(history.events), frame)
    finally:
        joined.close()
    return replace(history, events=events)


def _rolled_up(schema: Schema, history: History, rows: int, order: Order) -> History:
    """The history of windows of a history of readings."""
    rolled = roll_up(schema, history.events, order)
    window_of = np.full(rows, -1, np.int64)
    window_of[history.table_rows] = rolled.window_of
    rejects = history.rejects + rolled.rejects
    return History(rolled.windows, rejects, rolled.duplicates, window_of)


def _history_of(schema: Schema, frame: pd.DataFrame, progress: Progress) -> History:
    names = _present(schema, frame)
    if not len(frame):
        raise HistoryError("the history has no rows")
    columns = read_columns(schema.arriving, schema.arriving_keys, frame, _NO_KAFKA_TIME_MS)
    events, rejects = _sure_events(columns), list[Reject]()
    if not columns.sure.all():
        events, rejects = _with_doubtful(schema, frame[names], columns, events, progress)
    events.positions[:, KAFKA_TIME_MS] = events.times
    progress("Reading", 1.0)
    return History(_with_raw_repeats(schema, frame, names, events), rejects)


def _with_lookups(schema: Schema, events: Events, frame: pd.DataFrame) -> Events:
    """The events with the look-ups' values that the table has."""
    rows, numbers = events.positions[:, OFFSET], dict(events.numbers)
    for lookup in schema.lookups:
        for name, field in zip(lookup.columns, lookup.fields, strict=True):
            if name in frame:
                values = frame[name].to_numpy(np.float64, na_value=np.nan)[rows]
            else:
                values = np.full(len(events), np.nan)
            default = np.nan if field.default is None else float(field.default)
            numbers[name] = np.where(np.isnan(values), default, values)
    return replace(events, numbers=numbers)


def _present(schema: Schema, frame: pd.DataFrame) -> list[str]:
    absent = [f.name for f in schema.arriving.fields if f.required and f.name not in frame]
    if absent:
        raise HistoryError(
            f"no column for the required field(s) {', '.join(absent)}; "
            f"there are: {', '.join(map(str, frame.columns)) or 'none'}"
        )
    return [f.name for f in schema.arriving.fields if f.name in frame]


def _sure_events(columns: Columns) -> Events:
    """The rows that the decoder would surely accept, without their records."""
    rows = np.flatnonzero(columns.sure)
    at = slice(None) if len(rows) == len(columns.sure) else rows
    return Events(
        [b""] * len(rows),
        _positions(rows),
        columns.times[at],
        {name: column.texts(at) for name, column in columns.texts.items()},
        {name: column.values[at] for name, column in columns.numbers.items()},
    )


def _with_doubtful(
    schema: Schema, frame: pd.DataFrame, columns: Columns, sure: Events, progress: Progress
) -> tuple[Events, list[Reject]]:
    """Decode the other rows, as JSON: all that are accepted, in the table's order; and the rest."""
    decoder = Decoder.for_events(schema.arriving, schema.arriving_keys)
    rows = np.flatnonzero(~columns.sure)
    decoded = Decoded([sure] if len(sure) else [])
    for start in range(0, len(rows), _DECODE_ROWS):
        at = rows[start : start + _DECODE_ROWS]
        part = decoder.decode(_records(schema, frame.iloc[at]), _positions(at))
        decoded.parts += part.parts
        decoded.rejects += part.rejects
        _refuse_if_nothing_fits(decoded)
        progress("Reading", (len(frame) - len(rows) + start) / len(frame))
    events = decoded.merged()
    assert events is not None  # or it would have been refused
    return events.select(np.argsort(events.positions[:, OFFSET])), decoded.rejects


def _with_raw_repeats(
    schema: Schema, frame: pd.DataFrame, names: list[str], events: Events
) -> Events:
    """The events, with the records of those whose id is there more than once."""
    ids = events.texts[schema.arriving.id]
    hashes = np.fromiter(map(hash, ids), np.int64, len(ids))
    ordered = np.sort(hashes)
    repeated = ordered[1:][ordered[1:] == ordered[:-1]]
    raw = [b""] * len(events)
    if len(repeated):
        at = np.flatnonzero(np.isin(hashes, repeated))
        records = _records(schema, frame[names].iloc[events.positions[at, OFFSET]])
        for n, record in zip(at.tolist(), records, strict=True):
            raw[n] = record
    return replace(events, raw=raw)


def _records(schema: Schema, frame: pd.DataFrame) -> list[bytes]:
    names = list(frame.columns)
    columns = [_plain(schema.arriving.field(name), frame[name]) for name in names]
    rows = zip(*columns, strict=True)
    # orjson's bytes keep the buffer they were written to, kilobytes each: copied, they are short.
    return [bytes(memoryview(_dump(dict(zip(names, row, strict=True))))) for row in rows]


def _dump(record: dict[str, object]) -> bytes:
    try:
        return orjson.dumps(record, default=str, option=orjson.OPT_SERIALIZE_NUMPY)
    except TypeError:  # an integer beyond 64 bits, or half of a surrogate pair
        return json.dumps(record, default=str).encode()


def _plain(spec: FieldSpec, column: pd.Series) -> list[object]:  # type: ignore[type-arg]
    values: list[object] = column.astype(object).where(column.notna(), None).tolist()
    if spec.type == "int" and column.dtype.kind == "f":
        # A table stores whole numbers as floats as soon as one of them is missing.
        return [int(v) if isinstance(v, float) and v.is_integer() else v for v in values]
    return values


def _positions(rows: npt.NDArray[np.intp]) -> IntArray:
    positions = np.zeros((len(rows), 3), np.int64)
    positions[:, OFFSET] = rows
    positions[:, KAFKA_TIME_MS] = _NO_KAFKA_TIME_MS
    return positions


def _refuse_if_nothing_fits(decoded: Decoded) -> None:
    if decoded.parts or not decoded.rejects:
        return
    first = decoded.rejects[0]
    raise HistoryError(
        f"the job would accept none of the first {len(decoded.rejects):,} rows; "
        f"row {first.offset}: {first.message}"
    )


def labels_of(schema: Schema, events: Events, values: FloatArray) -> LabelBatch | None:
    """The late labels of a history, as the labels topic would bring them.

    Args:
        schema: The job's schema.
        events: The labelled events.
        values: Their labels, 0 or 1, float64 (n,); NaN where there is none.

    Returns:
        The known labels; none if the schema has no label features.
    """
    if schema.labels is None or not any(w.stream == "labels" for w in schema.features.windows):
        return None
    rows = np.flatnonzero(~np.isnan(values)).tolist()
    everything = LabelBatch(
        entities=events.texts[schema.labels.key],
        ids=events.texts[schema.arriving.id],
        times=events.times,
        values=values,
    )
    return everything.select(rows)
