"""The features of a whole history, computed by the code of the live job and without an engine.

A table becomes records, the records pass the job's own ``Decoder``, and the events go through
``evaluate`` and ``KeyedStage.observe`` chunk by chunk, as micro-batches do in the operators. So a
row that the job would refuse or drop as a duplicate is no training row either.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import orjson
import pandas as pd

from udfs.batch import LabelBatch
from udfs.event_spec import FieldSpec
from udfs.events import (
    KAFKA_TIME_MS,
    OFFSET,
    Decoded,
    Decoder,
    Events,
    FloatArray,
    IntArray,
    Reject,
)
from udfs.expressions import evaluate
from udfs.keyed import FormulaColumns, Identities, KeyedStage, StageInputs, StageState
from udfs.spec import Schema
from udfs.table_readers import Tables

CHUNK_ROWS = 2_048
"""Rows per call of a stage; the features do not depend on it."""

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
            in the table, its Kafka time is its event time.
        rejects: The rows the job would have sent to the dead letters; ``offset`` is their row.
    """

    events: Events
    rejects: list[Reject]

    @property
    def table_rows(self) -> IntArray:
        """The row in the table of each event, int64 (n,)."""
        return self.events.positions[:, OFFSET]


@dataclass(frozen=True, slots=True)
class OfflineFeatures:
    """The features of a history.

    Attributes:
        features: float64 (kept rows, columns of the schema) in event-time order; NaN is missing.
        rows: Which event each row is of, indices into the events given; intp (kept rows,).
        duplicates: How many events had an id and a content seen before.
        conflicts: How many events had an id seen before, with another content.
    """

    features: FloatArray
    rows: npt.NDArray[np.intp]
    duplicates: int
    conflicts: int


def silent(_step: str, _done: float) -> None:
    """A progress callback that shows nothing."""


def history_of(
    schema: Schema,
    frame: pd.DataFrame,
    progress: Progress = silent,
    tables: Tables = NO_TABLES,
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

    Raises:
        HistoryError: the column of a required field is absent, or the job would accept no row.
        TableError: a table could not be loaded.
    """
    joined = tables.open()
    try:
        history = _history_of(schema, frame, progress)
        events = _with_lookups(schema, joined.join(history.events), frame)
    finally:
        joined.close()
    return replace(history, events=events)


def _history_of(schema: Schema, frame: pd.DataFrame, progress: Progress) -> History:
    names = _present(schema, frame)
    decoder = Decoder.for_events(schema.event, schema.key_fields)
    decoded = Decoded()
    for start in range(0, len(frame), _DECODE_ROWS):
        raw = _records(schema, frame.iloc[start : start + _DECODE_ROWS], names)
        part = decoder.decode(raw, _positions(start, len(raw)))
        decoded.parts += part.parts
        decoded.rejects += part.rejects
        _refuse_if_nothing_fits(decoded)
        progress("Reading", min(1.0, (start + _DECODE_ROWS) / len(frame)))
    events = decoded.merged()
    if events is None:
        raise HistoryError("the history has no rows")
    events.positions[:, KAFKA_TIME_MS] = events.times
    return History(events, decoded.rejects)


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
    absent = [f.name for f in schema.event.fields if f.required and f.name not in frame]
    if absent:
        raise HistoryError(
            f"no column for the required field(s) {', '.join(absent)}; "
            f"there are: {', '.join(map(str, frame.columns)) or 'none'}"
        )
    return [f.name for f in schema.event.fields if f.name in frame]


def _records(schema: Schema, frame: pd.DataFrame, names: list[str]) -> list[bytes]:
    columns = [_plain(schema.event.field(name), frame[name]) for name in names]
    rows = zip(*columns, strict=True)
    # orjson's bytes keep the buffer they were written to, kilobytes each: copied, they are short.
    return [bytes(memoryview(_dump(dict(zip(names, row, strict=True))))) for row in rows]


def _dump(record: dict[str, object]) -> bytes:
    return orjson.dumps(record, default=str, option=orjson.OPT_SERIALIZE_NUMPY)


def _plain(spec: FieldSpec, column: pd.Series) -> list[object]:  # type: ignore[type-arg]
    values: list[object] = column.astype(object).where(column.notna(), None).tolist()
    if spec.type == "int" and column.dtype.kind == "f":
        # A table stores whole numbers as floats as soon as one of them is missing.
        return [int(v) if isinstance(v, float) and v.is_integer() else v for v in values]
    return values


def _positions(first_row: int, rows: int) -> IntArray:
    positions = np.zeros((rows, 3), np.int64)
    positions[:, OFFSET] = np.arange(first_row, first_row + rows)
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
        ids=events.texts[schema.event.id],
        times=events.times,
        values=values,
    )
    return everything.select(rows)


def features_of(
    schema: Schema,
    events: Events,
    labels: LabelBatch | None = None,
    progress: Progress = silent,
    chunk_rows: int = CHUNK_ROWS,
) -> OfflineFeatures:
    """The features of all events of a history, as if each had arrived in event-time order.

    Columns stand in the order of ``schema.columns``: the expressions, then stage by stage. Events
    of one time keep the order given. Without ``labels``, label features are those of an empty
    history.

    Args:
        schema: The job's schema.
        events: The history, in any order. Where ``raw`` is empty bytes, an event of a known id
            counts as a duplicate even if its content differs: neither enters a feature, so only
            the counts tell.
        labels: The labels of the whole history, or none.
        progress: Shown while they are computed.
        chunk_rows: Rows per call of a stage.

    Raises:
        HistoryError: a label feature has no delay, so it would see the event's own label.
    """
    stages = [KeyedStage(schema, key) for key in schema.stages]
    states = [stage.new_state() for stage in stages]
    if labels is not None:
        _learn(schema, stages, states, labels)
    order = np.argsort(events.times, kind="stable")
    inputs, formulas = StageInputs(schema), FormulaColumns(schema)
    parts = [OfflineFeatures(np.empty((0, len(schema.columns))), order[:0], 0, 0)]
    for start in range(0, len(order), chunk_rows):
        chunk = _Chunk(schema, inputs, events, order[start : start + chunk_rows])
        for stage, state in zip(stages, states, strict=True):
            chunk.observe(stage, state)
        parts.append(chunk.result(formulas))
        progress("Computing features", min(1.0, (start + chunk_rows) / len(order)))
    return _joined(parts)


def _joined(parts: list[OfflineFeatures]) -> OfflineFeatures:
    return OfflineFeatures(
        np.concatenate([p.features for p in parts]),
        np.concatenate([p.rows for p in parts]),
        sum(p.duplicates for p in parts),
        sum(p.conflicts for p in parts),
    )


def _learn(
    schema: Schema, stages: list[KeyedStage], states: list[StageState], labels: LabelBatch
) -> None:
    """Learn all labels before the first event.

    A label lies at its own event's time, and a label window ends ``delay`` before the event that
    looks: labels of later events are outside of it whether they are there or not, those inside are
    what the live job knows if every label arrives within its delay.
    """
    for window in schema.features.windows:
        if window.stream == "labels" and window.delay <= 0:
            raise HistoryError(
                f"features {window.prefix!r} read labels without a delay: in training each event "
                "would see its own label; set delay to the time after which labels are known"
            )
    for stage, state in zip(stages, states, strict=True):
        if stage.reads_labels and len(labels.times):
            identities = Identities.of_labels(labels.ids, labels.values)
            stage.learn(state, labels.entities, labels.times, labels.values, identities)


class _Chunk:
    """Some events on their way through the stages, as a ``FeatureBatch`` is in the live job."""

    def __init__(
        self, schema: Schema, inputs: StageInputs, events: Events, rows: npt.NDArray[np.intp]
    ) -> None:
        self._rows = rows
        self._duplicates = self._conflicts = 0
        self._id = schema.event.id
        self._lookup_columns = schema.lookup_columns
        self._events = _select(events, rows)
        first = {schema.key: self._events.texts[schema.key]}
        self._entities = first | inputs.entities(self._events)
        self._values = inputs.values(self._events)
        self._features = evaluate(schema.features.expressions, self._events)

    def observe(self, stage: KeyedStage, state: StageState) -> None:
        """Append a stage's features; duplicates leave."""
        observed = stage.observe(
            state,
            self._entities[stage.name],
            self._events.times,
            self._values,
            self._identities(stage),
        )
        if len(observed.kept) < len(self._events):
            self._keep(observed.kept)
        self._features = np.concatenate([self._features, observed.features], axis=1)
        self._duplicates += len(observed.duplicates)
        self._conflicts += len(observed.conflicts)

    def _keep(self, kept: npt.NDArray[np.intp]) -> None:
        at = kept.tolist()
        self._rows, self._features = self._rows[kept], self._features[kept]
        self._events = _select(self._events, kept)
        self._entities = {k: [column[i] for i in at] for k, column in self._entities.items()}
        self._values = {k: column[kept] for k, column in self._values.items()}

    def result(self, formulas: FormulaColumns) -> OfflineFeatures:
        """The features with those of the formulas and the look-ups."""
        made = formulas.append(self._features, self._values)
        looked_up = [self._events.numbers[name][:, None] for name in self._lookup_columns]
        features = np.concatenate([made, *looked_up], axis=1)
        return OfflineFeatures(features, self._rows, self._duplicates, self._conflicts)

    def _identities(self, stage: KeyedStage) -> Identities:
        if not stage.dedupes:
            return Identities.none(len(self._events))
        return Identities.of_events(self._events.texts[self._id], self._events.raw)


def _select(events: Events, rows: npt.NDArray[np.intp]) -> Events:
    at = rows.tolist()
    return replace(
        events,
        raw=[events.raw[i] for i in at],
        positions=events.positions[rows],
        times=events.times[rows],
        texts={name: [column[i] for i in at] for name, column in events.texts.items()},
        numbers={name: column[rows] for name, column in events.numbers.items()},
    )
