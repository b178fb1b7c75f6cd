"""Which events made a prediction's features: the entries of each window, from the topics."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np

from jobs.features.catalogue import Described, describe
from jobs.features.columns import EventColumns, LabelColumns, Source
from jobs.features.parity import as_json, is_same
from jobs.features.reach import not_recomputed
from jobs.features.replay import Rows, Seen, replay, seen_of
from jobs.settings import Settings
from udfs.batches.events import FloatArray
from udfs.definition.feature import WindowFeature
from udfs.definition.schema import Schema
from udfs.definition.window import Window
from udfs.features.window_plan import bounds_of, series_of


@dataclass(frozen=True, slots=True)
class Entry:
    """An event, or a label, in a window.

    Attributes:
        event_id: Its id.
        time_ms: Its time, epoch.
        values: What is aggregated of it; two numbers of a point, none if events are counted; a
            text's code.
        partition: Where its record is, in the events or the labels topic.
        offset: There.
    """

    event_id: str
    time_ms: int
    values: tuple[float, ...]
    partition: int
    offset: int


@dataclass(frozen=True, slots=True)
class Explained:
    """A feature of the event.

    Attributes:
        feature: What it is.
        recomputed: From the topics; none is missing, or a table or a look-up decides it.
        predicted: In the prediction; none is missing.
        is_equal: Whether they agree; none if it is not recomputed.
        after_ms: The window begins after this time; none for what is no window.
        until_ms: It ends with this time; none for what is no window.
        entries: What it holds, the oldest first.
    """

    feature: Described
    recomputed: float | None
    predicted: float | None
    is_equal: bool | None
    after_ms: int | None
    until_ms: int | None
    entries: list[Entry]


@dataclass(frozen=True, slots=True)
class Explanation:
    """An event and its features.

    Attributes:
        event_id: Its id.
        time_ms: Its time, epoch.
        partition: Where its record is.
        offset: There.
        late: Whether its prediction says so.
        features: Those asked for.
    """

    event_id: str
    time_ms: int
    partition: int
    offset: int
    late: bool
    features: list[Explained]

    @property
    def is_equal(self) -> bool:
        """Whether every value is the prediction's."""
        return all(f.is_equal is not False for f in self.features)


def explained(
    settings: Settings, source: Source, wanted: str, feature: str = ""
) -> Explanation | None:
    """Explain the prediction of an event.

    Args:
        settings: The job's.
        source: Its topics.
        wanted: The event's id, or its prediction's.
        feature: Only this one; empty for all.

    Returns:
        None if there is no prediction of such an event, with its record, in the topics.
    """
    seen = seen_of(source)
    row = _find(source, seen.rows[: len(source.predictions)], wanted, settings.topics.events)
    if row is None:
        return None
    return _Window(settings.schema_, source, seen, row).explanation(feature)


def _find(source: Source, rows: Rows, wanted: str, topic: str) -> int | None:
    """The prediction of an id, or of ``<topic>-<partition>-<offset>``."""
    found = source.events.ids.find(wanted)
    at = np.flatnonzero(np.isin(rows, found)) if found else np.empty(0, np.intp)
    if not len(at) and wanted.startswith(f"{topic}-"):
        partition, _, offset = wanted.removeprefix(f"{topic}-").partition("-")
        if partition.isdecimal() and offset.isdecimal():
            place = np.array([int(partition), int(offset)])
            is_it = (source.predictions.places == place).all(axis=1) & (rows >= 0)
            at = np.flatnonzero(is_it)
    return int(at[0]) if len(at) else None


class _Window:
    """The histories that one event sees.

    Args:
        schema: The job's schema.
        source: Its topics.
        seen: What the stages have seen.
        row: The prediction.
    """

    def __init__(self, schema: Schema, source: Source, seen: Seen, row: int) -> None:
        self._schema, self._source, self._row = schema, source, row
        self._rows, self._order = seen.rows, seen.order
        self._event = int(self._rows[row])
        self._seen = {stage: self._history(stage) for stage in schema.stages}

    def _history(self, stage: str) -> Rows:
        """Those of the entity's events that had arrived, itself included."""
        order = self._order[:, self._schema.stages.index(stage)]
        codes = self._source.events.entities[stage].codes
        is_own = codes[np.maximum(self._rows, 0)] == codes[self._event]
        found: Rows = np.flatnonzero(is_own & (self._rows >= 0) & (order <= order[self._row]))
        return found

    def explanation(self, feature: str) -> Explanation:
        """All features, or one."""
        events, predictions = self._source.events, self._source.predictions
        partition, offset, _ = events.positions[self._event].tolist()
        made = self._recomputed()
        found = predictions.features[self._row]
        made = np.append(made, np.full(len(found) - len(made), np.nan))  # look-ups are last
        same: list[bool | None] = is_same(made, found).tolist()
        unknown = not_recomputed(self._schema)
        for n, name in enumerate(self._schema.columns):
            if name in unknown:
                made[n], same[n] = np.nan, None
        described = describe(self._schema)
        return Explanation(
            event_id=events.ids[self._event],
            time_ms=int(events.times[self._event]),
            partition=partition,
            offset=offset,
            late=bool(predictions.late[self._row]),
            features=[
                self._feature(d, as_json(made[n]), as_json(found[n]), same[n])
                for n, d in enumerate(described)
                if feature in ("", d.name)
            ],
        )

    def _recomputed(self) -> FloatArray:
        """By the job's own classes, over what any of the histories holds."""
        rows = np.unique(np.concatenate([*self._seen.values(), [self._row]]))
        order = self._order[rows]
        again = replay(
            self._schema, self._source.events, self._rows[rows], order, self._source.labels
        )
        values: FloatArray = again.features[np.searchsorted(rows, self._row)]
        return values

    def _feature(
        self, described: Described, made: float | None, found: float | None, same: bool | None
    ) -> Explained:
        if described.kind != "window":
            return Explained(described, made, found, same, None, None, [])
        spec, window = self._declared(described.name)
        t = int(self._source.events.times[self._event]) - spec.delay
        lows, highs = bounds_of(window, np.array([t], np.int64))
        low, high = int(lows[0]), int(highs[0])
        labels = self._source.labels
        if spec.stream == "labels":
            held = [] if labels is None else self._labels(labels, described.stage)
        else:
            held = self._entries(self._source.events, spec, self._seen[described.stage])
        inside = _inside(held, window, low, high)
        if inside and (window.session or window.events):
            low = inside[0].time_ms - 1
        return Explained(described, made, found, same, low, high, inside)

    def _declared(self, name: str) -> tuple[WindowFeature, Window]:
        spec = next(w for w in self._schema.features.windows if name in w.columns)
        pairs = product(spec.windows, spec.aggregates)
        windows = {c: w for c, (w, _) in zip(spec.columns, pairs, strict=True)}
        return spec, windows[name]

    def _entries(self, events: EventColumns, spec: WindowFeature, seen: Rows) -> list[Entry]:
        """The events in the order of time, those of one time in that of arrival."""
        order = self._order[seen, self._schema.stages.index(spec.stage)]
        rows = self._rows[seen]
        rows = rows[np.lexsort((order, events.times[rows]))]
        columns = [events.values[s.name][rows].tolist() for s in series_of(spec)]
        values = list(zip(*columns, strict=True)) if columns else [()] * len(rows)
        return [
            Entry(events.ids[r], int(events.times[r]), v, *events.positions[r, :2].tolist())
            for r, v in zip(rows.tolist(), values, strict=True)
        ]

    def _labels(self, labels: LabelColumns, stage: str) -> list[Entry]:
        """The last label of each id, in the order of time."""
        (entity,) = self._source.events.entities[stage].of(np.array([self._event], np.intp))
        rows = np.flatnonzero(labels.entities.codes == labels.entities.code(entity))
        rows = rows[np.lexsort((labels.positions[rows, 1], labels.positions[rows, 2]))]
        last = {labels.ids[r]: r for r in rows.tolist()}
        entries = [
            Entry(i, int(labels.times[r]), (float(labels.values[r]),), *_place(labels, r))
            for i, r in last.items()
        ]
        return sorted(entries, key=lambda entry: entry.time_ms)


def _place(labels: LabelColumns, row: int) -> tuple[int, int]:
    partition, offset, _ = labels.positions[row].tolist()
    return partition, offset


def _inside(held: list[Entry], window: Window, low: int, high: int) -> list[Entry]:
    """The entries of a window that have a value."""
    upto = [e for e in held if e.time_ms <= high]
    if window.session is not None:
        start = len(upto) - 1
        while start > 0 and upto[start].time_ms - upto[start - 1].time_ms <= window.session:
            start -= 1
        upto = upto[max(start, 0) :]
    found = [e for e in upto if e.time_ms > low and not any(np.isnan(v) for v in e.values)]
    return found[-window.events :] if window.events is not None else found
