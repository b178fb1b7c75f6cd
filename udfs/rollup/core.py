"""The roll-up of readings to windows, without any engine.

The Flink operator and the training both use ``Rollup``: what a window says of its readings cannot
differ between them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from udfs.batches.categories import codes_of
from udfs.batches.events import Events, FloatArray, IntArray
from udfs.batches.templates import (
    FLOAT,
    TEXT,
    WHOLE,
    Template,
    as_template,
    between_quotes,
    members_of,
)
from udfs.compiled import Ints
from udfs.definition.rollup import (
    BY_CLOCK,
    BY_END,
    BY_IDLENESS,
    BY_TIME,
    CLOSED_BY,
    READINGS,
    WINDOW_END,
    WINDOW_ID,
    WINDOW_START,
    RollupSpec,
)
from udfs.definition.schema import Schema
from udfs.features import log_kernels
from udfs.features.aggregates import parse_aggregate
from udfs.features.histories import Entries, Histories, as_matrix
from udfs.features.identities import Identities
from udfs.features.keyed import StageState, Stored
from udfs.features.layouts import Layouts
from udfs.features.series import Series, SeriesReader
from udfs.features.window_plan import WindowPlan
from udfs.rollup.kernels import Closed, Rules
from udfs.rollup.windows import OpenWindows, PartWindows

Rows = npt.NDArray[np.intp]

REASONS = (BY_TIME, BY_IDLENESS, BY_END, BY_CLOCK)
"""By the kernels' numbers."""

_PLACE = ("@partition", "@offset", "@kafka_time")
"""Series of a reading's place; no field's name can hide them, as they are read by no formula."""


@dataclass(frozen=True, slots=True)
class Rolled:
    """What became of a batch of readings.

    Attributes:
        kept: Indices of those that are in windows, in order.
        duplicates: Indices of those whose id and content were seen before.
        conflicts: Indices of those whose id was seen with another content.
        late: Indices of those whose window is closed.
        entries: What was added, an entry per kept reading.
        closed: The windows that have closed.
    """

    kept: Rows
    duplicates: list[int]
    conflicts: list[int]
    late: list[int]
    entries: Entries
    closed: Closed


class Rollup:
    """All windows of a job's key.

    Args:
        schema: A schema with a roll-up.
        gaps_are_idle: As if readings arrived at their own times: a gap longer than ``idle`` closes
            windows. In the job the clock does.
    """

    dedupes = True

    def __init__(self, schema: Schema, *, gaps_are_idle: bool = False) -> None:
        assert schema.rollup is not None and schema.readings is not None
        self._schema, self._spec, self._readings = schema, schema.rollup, schema.readings
        values = tuple(dict.fromkeys(field.series for field in self._spec.fields))
        self._template = _template(schema.key, self._spec)
        self._reader = SeriesReader(self._readings, values)
        names = (*_PLACE, *(f"@keep {name}" for name in self._spec.keep))
        self._series = (*values, *map(Series, names))
        lateness_ms = self._readings.time.allowed_lateness
        dedupe_ms = self._readings.dedupe_within
        horizon_ms = dedupe_ms + lateness_ms + self._spec.every
        self._plan = _plan(self._series, horizon_ms, lateness_ms, dedupe_ms)
        named = [
            (values.index(s), n, parse_aggregate(a)) for n, (s, a) in enumerate(self._spec.named)
        ]
        named.sort(key=lambda column: column[:2])
        self._rules = Rules(
            self._spec.every,
            lateness_ms,
            dedupe_ms,
            horizon_ms,
            self._spec.idle if gaps_are_idle else 0,
            np.array([(value, name.aggregate.code) for value, _, name in named], np.int64),
            np.array([target for _, target, _ in named], np.int64),
            np.array([name.number for *_, name in named], np.float64),
            len(values),
        )

    @property
    def stored_names(self) -> dict[Stored, list[str]]:
        """The names of what is kept of a reading; there are no labels."""
        return {"events": [s.name for s in self._series], "labels": []}

    def new_state(
        self,
        read: Callable[[str, str], bytes | None] = lambda _stream, _key: None,
        max_entries: int = 1 << 62,
        layouts: Mapping[Stored, Layouts] | None = None,
    ) -> StageState:
        """Nothing yet of a bucket's readings.

        Args:
            read: Gives what is packed of a key: its ``events``, or its ``marks``.
            max_entries: Not looked at: all keys stay unpacked, as the clock looks at all of them.
            layouts: How packed readings may lie.
        """
        windows = OpenWindows(
            self._plan,
            self._rules,
            lambda key: read("events", key),
            lambda key: read("marks", key),
            (layouts or {}).get("events"),
        )
        return StageState(windows, Histories(_plan((), 0, 0, 0)))

    def new_part(self, lengths: IntArray) -> PartWindows:
        """Empty windows of keys numbered from 0, for one of several threads.

        Args:
            lengths: How many readings each key can have, int64 (keys,).
        """
        return PartWindows(self._plan, self._rules, lengths)

    def add_again(self, state: StageState, entries: Entries) -> None:
        """Add readings that ``observe`` kept once, in the same order; what they closed is out."""
        state.events.add_again(entries)

    def warm_up(self) -> None:
        """Compile the loops, or load them from Numba's cache: the first call takes seconds."""
        windows, values = self._windows(self.new_state()), np.ones((2, len(self._series)))
        identities, times = Identities.none(2), np.array([0, 1 << 50])
        slots = windows.slots(["", ""])
        windows.roll(Entries(slots, times, values, identities.ids, identities.checks))
        windows.close(slots[:1], 0)

    def values(self, readings: Events) -> FloatArray:
        """What is kept of readings, float64 (n, series)."""
        read = self._reader.read(readings)
        columns = [read[s.name] for s in self._reader.series]
        columns += list(readings.positions.astype(np.float64).T)
        columns += [codes_of(readings.texts[name]) for name in self._spec.keep]
        return as_matrix(columns, len(readings))

    def observe(self, state: StageState, readings: Events) -> Rolled:
        """Take readings in the order given, of one bucket."""
        slots = state.events.slots(readings.texts[self._schema.key])
        ids = readings.texts[self._readings.id]
        return self.observe_slots(
            self._windows(state),
            slots,
            readings.times,
            self.values(readings),
            Identities.of_events(ids, readings.raw),
        )

    def observe_slots(
        self,
        windows: OpenWindows,
        slots: Ints,
        times: IntArray,
        values: FloatArray,
        identities: Identities,
    ) -> Rolled:
        """As ``observe``, of readings whose key's slots are known.

        Args:
            windows: The open windows.
            slots: Of each reading, int64 (n,).
            times: Event times, epoch ms, int64 (n,).
            values: As ``values`` gives them.
            identities: Of the readings.
        """
        entries = Entries(slots, times, values, identities.ids, identities.checks)
        verdicts, closed = windows.roll(entries)
        kept = np.flatnonzero(verdicts == log_kernels.NEW)
        return Rolled(
            kept,
            np.flatnonzero(verdicts == log_kernels.DUPLICATE).tolist(),
            np.flatnonzero(verdicts == log_kernels.CONFLICT).tolist(),
            np.flatnonzero(verdicts == log_kernels.LATE).tolist(),
            entries if len(kept) == len(verdicts) else entries.select(kept),
            closed,
        )

    @staticmethod
    def _windows(state: StageState) -> OpenWindows:
        assert isinstance(state.events, OpenWindows)
        return state.events

    def events(self, closed: Closed, keys: Sequence[str], texts: Mapping[int, str]) -> Events:
        """Closed windows as events.

        Args:
            closed: The windows.
            keys: The key of each.
            texts: The text of each code of a field that is kept.

        Returns:
            Events of ``schema.event``. The place of one is that of its newest reading, which no
            other window has.
        """
        ends = closed.ends.tolist()
        words = {
            WINDOW_ID: [f"{key}@{end}" for key, end in zip(keys, ends, strict=True)],
            self._schema.key: list(keys),
            CLOSED_BY: [REASONS[reason] for reason in closed.reasons.tolist()],
        }
        codes = closed.newest[:, len(_PLACE) :].astype(np.int64).T.tolist()
        for name, column in zip(self._spec.keep, codes, strict=True):
            words[name] = [texts[code] for code in column]
        whole = {
            WINDOW_START: closed.ends - self._spec.every,
            WINDOW_END: closed.ends,
            READINGS: closed.readings,
        }
        columns = dict(zip(self._spec.columns, np.ascontiguousarray(closed.values.T), strict=True))
        return Events(
            self._as_json(words, whole, closed.values),
            closed.newest[:, : len(_PLACE)].astype(np.int64),
            closed.ends,
            words,
            {name: column.astype(np.float64) for name, column in whole.items()} | columns,
        )

    def _as_json(
        self, words: Mapping[str, list[str]], whole: Mapping[str, IntArray], values: FloatArray
    ) -> list[bytes]:
        """Each window as a record; a missing value is null."""
        texts = [""] * (len(words) * len(values))
        for n, column in enumerate(words.values()):
            texts[n :: len(words)] = between_quotes(column)
        return self._template.fill(values, np.stack([*whole.values()], axis=1), texts)


def _template(key: str, spec: RollupSpec) -> Template:
    """A window's record, its members in the order of ``Rollup.events``."""
    words = members_of((WINDOW_ID, key, CLOSED_BY, *spec.keep), TEXT)
    whole = members_of((WINDOW_START, WINDOW_END, READINGS), WHOLE)
    return as_template(["{", *words, ",", *whole, ",", *members_of(spec.columns, FLOAT), "}"])


def _plan(
    series: Sequence[Series], horizon_ms: int, lateness_ms: int, dedupe_ms: int
) -> WindowPlan:
    """Entries of these series, without any feature."""
    return WindowPlan(
        (),
        series,
        [False] * len(series),
        frozenset(),
        identified=bool(series),
        horizon_ms=horizon_ms,
        lateness_ms=lateness_ms,
        dedupe_ms=dedupe_ms,
    )
