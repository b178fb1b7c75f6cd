"""A job's features, computed again in the order of arrival that its predictions recorded.

The same classes as in the operators, with one bucket for all: what an event sees depends on its
own entity's events alone, and of these the places in the bucket's order of arrival give the order.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from jobs.features.columns import EventColumns, LabelColumns, Source
from udfs.batches.events import FloatArray, IntArray
from udfs.definition.schema import Schema
from udfs.features.formula_columns import FormulaColumns
from udfs.features.identities import Identities
from udfs.features.keyed import KeyedStage, StageState

Progress = Callable[[str, float], None]
Rows = npt.NDArray[np.intp]

_ROWS = 8_192


@dataclass(frozen=True, slots=True)
class Replayed:
    """What became of the events again.

    Attributes:
        features: float64 (n, columns of the schema); NaN is missing.
        late: Which are later than the allowed lateness, bool (n,).
        repeats: Which the first stage took for repeats of another, bool (n,): all of their windows
            are missing here.
    """

    features: FloatArray
    late: npt.NDArray[np.bool_]
    repeats: npt.NDArray[np.bool_]

    def first(self, count: int) -> Replayed:
        """Of the first events alone."""
        return Replayed(self.features[:count], self.late[:count], self.repeats[:count])


def silent(_step: str, _done: float) -> None:
    """A progress callback that shows nothing."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What the stages have seen: the predictions' events, and after them those without one.

    Attributes:
        rows: The event of each, intp (n,); -1 where the topic does not have it.
        order: Place of each in each stage's order of arrival, int64 (n, stages).
    """

    rows: Rows
    order: IntArray


def seen_of(source: Source) -> Seen:
    """All that features of the predictions may be of."""
    places, order = source.predictions.places, source.predictions.order
    if source.shed is not None:
        places = np.concatenate([places, source.shed.places])
        order = np.concatenate([order, source.shed.order])
    return Seen(_event_rows(source, places), order)


def _event_rows(source: Source, places: IntArray) -> Rows:
    wanted = _place_numbers(places)
    have = _place_numbers(source.events.positions[:, :2])
    order = np.argsort(have, kind="stable")
    at = np.searchsorted(have, wanted, sorter=order)
    rows: Rows = np.append(order, -1)[at]
    rows[np.append(have, -1)[rows] != wanted] = -1
    return rows


def _place_numbers(places: IntArray) -> IntArray:
    """Partition and offset as one number."""
    numbers: IntArray = (places[:, 0] << 48) | places[:, 1]
    return numbers


def replay(
    schema: Schema,
    events: EventColumns,
    rows: Rows,
    order: IntArray,
    labels: LabelColumns | None,
    progress: Progress = silent,
) -> Replayed:
    """Compute all features of some events again.

    Labels are learnt before the first event, as in training: a label that arrived within its delay
    is in the windows that end so long before an event, whenever it was learnt.

    Args:
        schema: The job's schema.
        events: All events.
        rows: Which of them the stages have seen, intp (n,).
        order: The place of each in every stage's order of arrival, int64 (n, stages).
        labels: All labels; none if no feature reads them.
        progress: Shown while they are computed.
    """
    n = len(rows)
    late, repeats = np.zeros(n, np.bool_), np.zeros(n, np.bool_)
    parts = [events.expressions[rows]]
    for number, name in enumerate(schema.stages):
        stage = KeyedStage(schema, name)
        state = stage.new_state()
        if labels is not None and stage.reads_labels:
            _learn(stage, state, labels)
        arrival = np.argsort(order[:, number], kind="stable")
        arrival = arrival[~repeats[arrival]]
        features = np.full((n, len(stage.columns)), np.nan)
        for start in range(0, len(arrival), _ROWS):
            chunk = arrival[start : start + _ROWS]
            _observe(stage, state, events, rows[chunk], chunk, features, late, repeats)
            progress(f"recomputing {name}", min(1.0, (start + _ROWS) / len(arrival)))
        parts.append(features)
    made = np.concatenate(parts, axis=1)
    formulas = FormulaColumns(schema)
    fields = {name: events.values[name][rows] for name in formulas.fields}
    return Replayed(formulas.append(made, fields), late, repeats)


def _observe(
    stage: KeyedStage,
    state: StageState,
    events: EventColumns,
    rows: Rows,
    targets: Rows,
    features: FloatArray,
    late: npt.NDArray[np.bool_],
    repeats: npt.NDArray[np.bool_],
) -> None:
    """Add the events of ``rows``; what they see goes to ``targets`` of the last three arrays."""
    identities = (
        Identities(events.identities.ids[rows], events.identities.checks[rows])
        if stage.dedupes
        else Identities.none(len(rows))
    )
    observed = stage.observe(
        state,
        events.entities[stage.name].of(rows),
        events.times[rows],
        {series.name: events.values[series.name][rows] for series in stage.series},
        identities,
    )
    kept = targets[observed.kept]
    features[kept] = observed.features
    late[kept] |= observed.late
    repeats[targets] = True
    repeats[kept] = False


def _learn(stage: KeyedStage, state: StageState, labels: LabelColumns) -> None:
    arrival = np.lexsort((labels.positions[:, 1], labels.positions[:, 2]))
    for start in range(0, len(arrival), _ROWS):
        rows = arrival[start : start + _ROWS]
        stage.learn(
            state,
            labels.entities.of(rows),
            labels.times[rows],
            labels.values[rows],
            Identities(labels.identities.ids[rows], labels.identities.checks[rows]),
        )
