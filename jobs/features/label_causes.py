"""Why a feature over labels differs: which label the job did not know when it scored the event."""

from __future__ import annotations

import numpy as np

from jobs.features.catalogue import Described
from jobs.features.columns import PREDICTED_EVENT, PREDICTED_SCORED, LabelColumns, Source
from jobs.features.replay import Rows
from udfs.batches.events import IntArray
from udfs.definition.feature import WindowFeature
from udfs.definition.schema import Schema
from udfs.definition.types import format_duration
from udfs.features.identities import Identities
from udfs.features.keyed import KeyedStage

_TOLERANCE = 1e-9
_MOST_LABELS = 5_000
"""Of a window, tried one by one."""


class LabelCauses:
    """The causes of differences in features over labels.

    Args:
        schema: The job's schema.
        source: Its topics.
    """

    def __init__(self, schema: Schema, source: Source) -> None:
        self._schema = schema
        self._source = source

    def cause(
        self, event: int, times: IntArray, described: Described, predicted: float, late: bool
    ) -> str:
        """The cause; empty if the labels explain nothing.

        Args:
            event: The event's row.
            times: Of the prediction: event time, Kafka time, time of the score.
            described: The feature.
            predicted: Its value in the prediction.
            late: Whether the event is late: that explains it better than labels read in time.
        """
        labels = self._source.labels
        if labels is None:
            return ""
        window = next(w for w in self._schema.features.windows if described.name in w.columns)
        (entity,) = self._source.events.entities[described.stage].of(np.array([event], np.intp))
        rows = self._in_reach(labels, entity, int(times[PREDICTED_EVENT]), window)
        t, scored_ms = int(times[PREDICTED_EVENT]), int(times[PREDICTED_SCORED])
        after = rows[labels.positions[rows, 2] > scored_ms]
        if late and not len(after):
            return ""
        known = self._known(labels, entity, rows, t, described, predicted)
        if known is not None:
            return self._late(labels, int(rows[known]), scored_ms, window)
        if len(after):
            return self._late(labels, int(after[0]), scored_ms, window)
        first = [f"{n} at {r.first}" for n, r in labels.ranges.items() if r.first]
        if first:
            begins = ", ".join(first)
            return f"labels may be gone by retention: partitions begin later than 0: {begins}"
        return ""

    def _in_reach(self, labels: LabelColumns, entity: str, t: int, window: WindowFeature) -> Rows:
        """The labels that a feature may count, in their order of arrival."""
        high = t - window.delay
        low = t - window.horizon_ms
        is_own = labels.entities.codes == labels.entities.code(entity)
        rows = np.flatnonzero(is_own & (labels.times > low) & (labels.times <= high))
        arrival = np.lexsort((labels.positions[rows, 1], labels.positions[rows, 2]))
        ordered: Rows = rows[arrival]
        return ordered

    def _known(
        self,
        labels: LabelColumns,
        entity: str,
        rows: Rows,
        t: int,
        described: Described,
        predicted: float,
    ) -> int | None:
        """The most of the labels, the first so many, that give the predicted value; or none."""
        stage = KeyedStage(self._schema, described.stage)
        column = stage.plans["labels"].columns.index(described.name)
        state = stage.new_state()
        slot, at, found = state.labels.slots([entity]), np.array([t], np.int64), None
        for count in range(min(len(rows), _MOST_LABELS)):
            value = state.labels.measure(slot, at)[0, column]
            if np.isclose(value, predicted, rtol=_TOLERANCE, atol=0, equal_nan=True):
                found = count
            row = rows[count : count + 1]
            identities = Identities(labels.identities.ids[row], labels.identities.checks[row])
            stage.learn(state, [entity], labels.times[row], labels.values[row], identities)
        return found

    def _late(self, labels: LabelColumns, row: int, scored_ms: int, window: WindowFeature) -> str:
        partition, offset, came_ms = labels.positions[row].tolist()
        age = _about(came_ms - int(labels.times[row]))
        text = (
            f"the label of {labels.ids[row]} (record {partition}/{offset} of the labels) was not "
            f"known yet: it came {age} after its event, the delay is "
            f"{format_duration(window.delay)}"
        )
        if came_ms > scored_ms:
            return f"{text}; the event was scored {_about(came_ms - scored_ms)} earlier"
        return f"{text}; it was in the topic, and the job read it after the event"


def _about(duration_ms: int) -> str:
    for name, unit_ms in (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000)):
        if duration_ms >= unit_ms:
            return f"{duration_ms / unit_ms:.1f}{name}"
    return f"{duration_ms}ms"
