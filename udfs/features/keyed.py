"""The features of one key: what a keyed stage does to a batch, without any engine.

The Flink operator and the training both call ``KeyedStage.observe``; they differ only in where an
unknown entity's history is read from (Flink's map state, or nowhere). That is why a training
feature and a live feature cannot differ.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from udfs.batches.events import FloatArray, IntArray
from udfs.definition.feature import WindowFeature
from udfs.definition.schema import Schema
from udfs.features import log_kernels as kernels
from udfs.features.first_histories import FirstHistories, PartFirstHistories
from udfs.features.histories import Entries, Histories, as_matrix
from udfs.features.identities import Identities, Rows
from udfs.features.layouts import Layouts
from udfs.features.part_histories import PartHistories
from udfs.features.series import Series, SeriesReader
from udfs.features.window_plan import WindowPlan, series_of


@dataclass(frozen=True, slots=True)
class Observed:
    """What a stage made of a batch.

    Attributes:
        features: float64 (kept rows, columns of the stage).
        kept: Indices of the rows that are not duplicates, in order.
        duplicates: Indices of the rows whose id and content were seen before.
        conflicts: Indices of the rows whose id was seen with another content.
        late: Which of the kept rows are later than the allowed lateness, bool (kept rows,): their
            features may lack what has been forgotten.
        entries: What was added to the histories, an entry per kept row.
    """

    features: FloatArray
    kept: Rows
    duplicates: list[int]
    conflicts: list[int]
    late: npt.NDArray[np.bool_]
    entries: Entries


@dataclass(frozen=True, slots=True)
class StageState:
    """The histories of one bucket of a stage.

    Attributes:
        events: Of its events, for as long as windows look back.
        labels: Of its late labels.
        first: Of each entity's first events, if windows look at them.
    """

    events: Histories
    labels: Histories
    first: FirstHistories | None = None


Stream = Literal["events", "labels", "first"]


Stored = Literal["events", "labels", "first", "panes"]


class KeyedStage:
    """All window features of one key.

    Args:
        schema: The job's schema.
        name: One of ``schema.stages``; the first also finds duplicates.
    """

    def __init__(self, schema: Schema, name: str) -> None:
        windows = schema.features.of_stage(name)
        self.name = name
        self.dedupes = name == schema.key
        self.columns = tuple(c for w in windows for c in w.columns)
        self._schema = schema
        self._events = _plan(schema, name, "events")
        self._labels = _plan(schema, name, "labels")
        self._first = _first_plan(schema, name)
        measured = self._events.columns + self._labels.columns
        if self._first is not None:
            measured += self._first.columns
        self._order = np.array([measured.index(c) for c in self.columns], np.intp)

    @property
    def reads_labels(self) -> bool:
        """Whether late labels enter this stage."""
        return bool(self._labels.columns)

    @property
    def series(self) -> tuple[Series, ...]:
        """The series of events that this stage keeps."""
        first = () if self._first is None else self._first.series
        return tuple(dict.fromkeys((*self._events.series, *first)))

    @property
    def plans(self) -> dict[Stream, WindowPlan]:
        """The windows of each stream, and those of each key's first events if there are any."""
        plans: dict[Stream, WindowPlan] = {"events": self._events, "labels": self._labels}
        return plans if self._first is None else plans | {"first": self._first}

    @property
    def stored_names(self) -> dict[Stored, list[str]]:
        """The names of the series of each stream, and those of panes, if there are some."""
        names: dict[Stored, list[str]] = {
            stream: [s.name for s in plan.series] for stream, plan in self.plans.items()
        }
        panes = self._events.pane_names
        return names | {"panes": [*panes]} if panes else names

    def new_state(
        self,
        read: Callable[[Stream, str], bytes | None] = lambda _stream, _entity: None,
        max_entries: int = 1 << 62,
        layouts: dict[Stored, Layouts] | None = None,
    ) -> StageState:
        """Histories for a bucket.

        Args:
            read: Gives the packed history of a stream and an entity, or none.
            max_entries: How many entries of each stream stay unpacked.
            layouts: How packed histories may lie; none if all are as today.
        """
        known = layouts or {}
        events, first = known.get("events"), None
        plan = self._events
        if events is not None and len(events.all) > 1:
            # Entries of an earlier layout have no value in a series that came later.
            plan = _plan(self._schema, self.name, "events", all_can_lack=True)
        if self._first is not None:
            layout, wanted = known.get("first"), self._first
            if layout is not None and len(layout.all) > 1:
                wanted = _first_plan(self._schema, self.name, all_can_lack=True) or wanted
            first = FirstHistories(wanted, lambda e: read("first", e), max_entries, layout)
        return StageState(
            Histories(plan, lambda e: read("events", e), max_entries, events, known.get("panes")),
            Histories(self._labels, lambda e: read("labels", e), max_entries, known.get("labels")),
            first,
        )

    def new_part(self, lengths: IntArray, label_lengths: IntArray) -> StageState:
        """Empty histories of entities numbered from 0, for one of several threads.

        Args:
            lengths: How many events each entity can have, int64 (entities,).
            label_lengths: And how many labels, int64 (entities,).
        """
        return StageState(
            PartHistories(self._events, lengths),
            PartHistories(self._labels, label_lengths),
            None if self._first is None else PartFirstHistories(self._first, lengths),
        )

    def warm_up(self) -> None:
        """Compile the loops, or load them from Numba's cache: the first call takes seconds."""
        zero, one = np.zeros(1, np.int64), np.ones(1)
        state, nobody = self.new_state(), [""]
        self.observe(state, nobody, zero, {s.name: one for s in self.series}, Identities.none(1))
        self.learn(state, nobody, zero, one, Identities.none(1))
        state.events.warm_up()

    def observe(
        self,
        state: StageState,
        entities: Sequence[str],
        times: IntArray,
        values: dict[str, FloatArray],
        identities: Identities,
    ) -> Observed:
        """Add each event to its entity's history and measure its windows, itself included.

        Rows are taken in the order given: a row sees those of the same entity before it.

        Args:
            state: The bucket's histories.
            entities: The key's value of each event, n of them.
            times: Event times, epoch ms, int64 (n,).
            values: The stage's series by name, float64 (n,) each.
            identities: Compared with those seen, on the first stage only.
        """
        return self.observe_slots(
            state,
            state.events.slots(entities),
            lambda histories, kept: histories.slots([entities[i] for i in kept.tolist()]),
            times,
            values,
            identities,
        )

    def observe_slots(
        self,
        state: StageState,
        slots: IntArray,
        other_slots: Callable[[Histories, Rows], IntArray],
        times: IntArray,
        values: dict[str, FloatArray],
        identities: Identities,
    ) -> Observed:
        """As ``observe``, of events whose histories are known.

        Args:
            state: The bucket's histories.
            slots: The history of each event, int64 (n,).
            other_slots: Gives the slots that other histories have for some rows.
            times: Event times, epoch ms, int64 (n,).
            values: The stage's series by name, float64 (n,) each.
            identities: Compared with those seen, on the first stage only.
        """
        entries = Entries(
            slots,
            times,
            as_matrix([values[s.name] for s in self._events.series], len(times)),
            identities.ids,
            identities.checks,
        )
        features, verdicts = state.events.observe(entries)
        late = verdicts == kernels.LATE
        kept = np.flatnonzero((verdicts == kernels.NEW) | late)
        if len(kept) < len(times):
            features, times, entries = features[kept], times[kept], entries.select(kept)
        measured = [features]
        if self.reads_labels:
            measured.append(state.labels.measure(other_slots(state.labels, kept), times))
        if state.first is not None:
            slots = other_slots(state.first, kept)
            measured.append(self._against_first(state.first, slots, times, values, kept))
        if len(measured) > 1:
            features = np.concatenate(measured, axis=1)[:, self._order]
        return Observed(
            features,
            kept,
            np.flatnonzero(verdicts == kernels.DUPLICATE).tolist(),
            np.flatnonzero(verdicts == kernels.CONFLICT).tolist(),
            late[kept],
            entries,
        )

    def _against_first(
        self,
        first: FirstHistories,
        slots: IntArray,
        times: IntArray,
        values: dict[str, FloatArray],
        kept: Rows,
    ) -> FloatArray:
        none = np.zeros(len(times), np.int64)
        columns = [values[s.name][kept] for s in first.plan.series]
        matrix = as_matrix(columns, len(times))
        return first.measure_first(Entries(slots, times, matrix, none, none))

    def add_again(self, state: StageState, entries: Entries) -> None:
        """Add events that ``observe`` kept once, in the same order: the histories become the same.

        Args:
            state: The bucket's histories.
            entries: As ``observe`` gave them.
        """
        state.events.add_again(entries)

    def learn(
        self,
        state: StageState,
        entities: Sequence[str],
        times: IntArray,
        values: FloatArray,
        identities: Identities,
    ) -> int:
        """Add late labels to their entities' histories.

        A label that is repeated changes nothing; one that differs replaces the earlier one.

        Returns:
            How many were repeats.
        """
        return self.learn_slots(state, state.labels.slots(entities), times, values, identities)

    def learn_slots(
        self,
        state: StageState,
        slots: IntArray,
        times: IntArray,
        values: FloatArray,
        identities: Identities,
        are_new: bool = False,
    ) -> int:
        """As ``learn``, of labels whose histories are known.

        Args:
            state: The histories.
            slots: The history of each label, int64 (n,).
            times: Epoch ms, int64 (n,).
            values: The labels, float64 (n,).
            identities: Compared with those there.
            are_new: No two are of one event, and none is there yet: none is looked for.
        """
        entries = Entries(
            slots,
            times,
            np.repeat(values[:, None], len(self._labels.series), axis=1),
            identities.ids,
            identities.checks,
        )
        if are_new:
            state.labels.learn_new(entries)
            return 0
        verdicts = state.labels.learn(entries)
        return int(np.count_nonzero(verdicts == kernels.DUPLICATE))


def _windows(schema: Schema, name: str, stream: Stream) -> tuple[WindowFeature, ...]:
    """A stage's features of a stream: those with other windows than first events', or with those.

    A feature that has both is in two streams, with its windows of each.
    """
    found = []
    for feature in schema.features.of_stage(name):
        spans = tuple(w for w in feature.windows if (w.first is not None) == (stream == "first"))
        if feature.stream == ("events" if stream == "first" else stream) and spans:
            found.append(feature.model_copy(update={"windows": spans}))
    return tuple(found)


def _series(windows: Iterable[WindowFeature]) -> tuple[Series, ...]:
    return tuple(dict.fromkeys(s for w in windows for s in series_of(w)))


def _plan(schema: Schema, name: str, stream: Stream, *, all_can_lack: bool = False) -> WindowPlan:
    windows = _windows(schema, name, stream)
    series = _series(windows)
    dedupes = name == schema.key and stream == "events"
    return WindowPlan(
        windows,
        series,
        SeriesReader(schema.known, series).nullable
        if stream == "events" and not all_can_lack
        else [all_can_lack] * len(series),
        frozenset(f.name for f in schema.known.fields if not f.is_numeric),
        identified=dedupes or stream == "labels",
        horizon_ms=schema.horizon_ms(name, stream),
        lateness_ms=schema.event.time.allowed_lateness,
        dedupe_ms=schema.event.dedupe_within if dedupes else 0,
        exact_ms=schema.exact_ms(name),
    )


def _first_plan(schema: Schema, name: str, *, all_can_lack: bool = False) -> WindowPlan | None:
    windows = _windows(schema, name, "first")
    if not windows:
        return None
    series = _series(windows)
    nullable = SeriesReader(schema.known, series).nullable
    return WindowPlan(
        windows,
        series,
        [True] * len(series) if all_can_lack else nullable,
        frozenset(f.name for f in schema.known.fields if not f.is_numeric),
        identified=False,
        horizon_ms=0,
        lateness_ms=0,
        dedupe_ms=0,
    )
