"""The histories of many keys in one array: the heart of every keyed feature.

``log_kernels`` says how they lie in it, and does the work on a whole micro-batch per call. What is
stored of a history are its entries; the blocks that make windows cheap are made anew when it is
read.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from udfs.compiled import Floats, Ints
from udfs.features import log_kernels as kernels
from udfs.features import measure_kernels
from udfs.features.log_kernels import Log, Rows
from udfs.features.measure_kernels import Plan
from udfs.features.window_plan import WindowPlan

# Version, whether entries have ids, layout, series, zero (entries stay aligned); place in the order
# of arrival; time of the newest expired entry.
_HEADER = struct.Struct("<BBHHHqq")
_VERSION = 3
_OLD_HEADER = struct.Struct("<BBHIq")  # version 2: version, values, words per entry, zero; place
_OLD_VERSION = 2


class StateFormatError(ValueError):
    """Packed state that this release cannot read."""


@dataclass(frozen=True, slots=True)
class Entries:
    """Entries to be added.

    Attributes:
        slots: The history of each, int64 (n,).
        times: Epoch ms, int64 (n,).
        values: float64 (n, series); NaN is none.
        ids: Hashes of the ids, int64 (n,).
        checks: Hashes of the contents, int64 (n,).
    """

    slots: Ints
    times: Ints
    values: Floats
    ids: Ints
    checks: Ints

    def select(self, rows: npt.NDArray[np.intp] | npt.NDArray[np.bool_]) -> Entries:
        """These entries alone."""
        return Entries(
            self.slots[rows],
            self.times[rows],
            self.values[rows],
            self.ids[rows],
            self.checks[rows],
        )

    @property
    def rows(self) -> Rows:
        """As the compiled loops take them."""
        return Rows(self.slots, self.times, self.values, self.ids, self.checks)


class Layouts:
    """Which series stored entries have: the features may have changed since they were stored.

    Args:
        series: The names of today's series.
        stored: Those of each earlier layout, the oldest first.
    """

    def __init__(self, series: Sequence[str], stored: Sequence[Sequence[str]] = ()) -> None:
        today = tuple(series)
        self.all = tuple(map(tuple, stored))
        if today not in self.all:
            self.all = (*self.all, today)
        self.today = self.all.index(today)
        self._places = [[s.index(n) if n in s else -1 for n in today] for s in self.all]

    def values_of(self, number: int, values: Floats) -> Floats:
        """Values of an earlier layout in today's order; a series it had not is NaN.

        Args:
            number: Which layout.
            values: float64 (n, its series).

        Raises:
            StateFormatError: there is no such layout, or it has another number of series.
        """
        if number >= len(self.all) or len(self.all[number]) != values.shape[1]:
            raise StateFormatError(_FOREIGN)
        if number == self.today:
            return values
        padded = np.concatenate([values, np.full((len(values), 1), np.nan)], axis=1)
        return np.ascontiguousarray(padded[:, self._places[number]])


_FOREIGN = (
    "a stored history has another layout (another key's, or another release's): start without this "
    "state, or with the settings that wrote it"
)


class Histories:
    """The histories of one bucket's entities.

    Args:
        plan: Which series they have, and what is measured.
        read: Gives an entity's packed history, or none if it has none yet.
        max_entries: The array's size at which unpacked histories are better dropped.
        layouts: How packed histories may lie; none if all are as today.
    """

    _observe = staticmethod(measure_kernels.observe)
    _add = staticmethod(measure_kernels.add)
    _learn = staticmethod(kernels.learn)
    _measure = staticmethod(measure_kernels.measure)

    def __init__(
        self,
        plan: WindowPlan,
        read: Callable[[str], bytes | None] = lambda _: None,
        max_entries: int = 1 << 62,
        layouts: Layouts | None = None,
    ) -> None:
        self.plan = plan
        self.layouts = layouts or Layouts([s.name for s in plan.series])
        self._read = read
        self._max_entries = max_entries
        self._identified = plan.layout.first > kernels.ID
        header = _HEADER.pack(
            _VERSION, self._identified, self.layouts.today, len(plan.series), 0, 0, 0
        )
        self._header = int(np.frombuffer(header, np.int64)[0])
        self.clear()

    def clear(self) -> None:
        """Drop all that is unpacked, which must be stored elsewhere."""
        self._names: list[str] = []
        self._slots: dict[str, int] = {}
        self._written = np.zeros(1_024, np.int64)
        self._log = _new_log(np.zeros((4_096, self.plan.words), np.int64), 1_024)

    def __len__(self) -> int:
        """How many entities are unpacked."""
        return len(self._slots)

    @property
    def entities(self) -> tuple[str, ...]:
        """The entities that are unpacked."""
        return tuple(self._names)

    def names(self, slots: Ints) -> list[str]:
        """The entity of each slot."""
        return [self._names[slot] for slot in slots.tolist()]

    def written_until(self, slots: Ints) -> Ints:
        """The ``until`` each slot's history was last packed with, or read with; int64 (n,)."""
        return self._written[slots]

    @property
    def is_over_size(self) -> bool:
        """Whether more is unpacked than ``max_entries``."""
        return bool(self._log.used[0] > self._max_entries)

    @property
    def capacity_bytes(self) -> int:
        """Memory of the shared array and of the index of ids, in bytes."""
        return self._log.ints.nbytes + self._log.seen.nbytes

    def slots(self, entities: Sequence[str]) -> Ints:
        """The slot of each entity; an unknown one is read, or begins with an empty history.

        Raises:
            StateFormatError: a packed history is of another layout or version.
        """
        known = self._slots
        try:
            return np.array([known[entity] for entity in entities], np.int64)
        except KeyError:
            for entity in entities:
                if entity not in known:
                    self._open(entity)
            return np.array([known[entity] for entity in entities], np.int64)

    def _open(self, entity: str) -> None:
        packed = self._read(entity)
        until, oldest_ms, entries = (0, kernels.NEVER_MS, self._none)
        if packed is not None:
            until, oldest_ms, entries = self._unpack(packed)
        slot = len(self._slots)
        if slot == len(self._log.regions):
            regions = np.concatenate([self._log.regions, np.zeros_like(self._log.regions)])
            self._log = self._log._replace(regions=regions)
            self._written = np.concatenate([self._written, np.zeros_like(self._written)])
        capacity = max(kernels.MIN_CAPACITY, 2 * (len(entries) + 1))
        if self._log.used[0] + capacity > len(self._log.ints):
            self._grow(capacity)
        begin = int(self._log.used[0])
        self._log.used[0] += capacity
        self._log.regions[slot] = begin, begin, begin, begin + capacity, -begin, 0
        kernels.unpack(self._log, slot, oldest_ms, entries, self.plan.layout)
        self._written[slot] = until
        self._slots[entity] = slot
        self._names.append(entity)

    @property
    def _none(self) -> Ints:
        return np.empty((0, self.plan.kept_words), np.int64)

    def _unpack(self, packed: bytes) -> tuple[int, int, Ints]:
        """Place in the order of arrival, time of the newest expired entry, and the entries."""
        if packed[:1] == bytes([_OLD_VERSION]):
            return self._unpack_old(packed)
        if len(packed) < _HEADER.size or packed[0] != _VERSION:
            raise StateFormatError(_FOREIGN)
        _, identified, layout, series, _, until, oldest_ms = _HEADER.unpack_from(packed)
        first = self.plan.layout.first
        entries, rest = divmod(len(packed) - _HEADER.size, 8 * (first + series))
        if bool(identified) != self._identified or rest:
            raise StateFormatError(_FOREIGN)
        stored = np.frombuffer(packed, np.int64, offset=_HEADER.size)
        stored = stored.reshape(entries, first + series)
        return until, oldest_ms, self._today(stored[:, :first], layout, stored[:, first:])

    def _today(self, fixed: Ints, layout: int, values: Ints) -> Ints:
        today = self.layouts.values_of(layout, np.ascontiguousarray(values).view(np.float64))
        return np.concatenate([fixed, today.view(np.int64)], axis=1)

    def _unpack_old(self, packed: bytes) -> tuple[int, int, Ints]:
        """Version 2 kept running sums of each value; those of the first layout."""
        _, values, words, _, until = _OLD_HEADER.unpack_from(packed)
        entries, rest = divmod(len(packed) - _OLD_HEADER.size, 8 * words)
        if words != 3 + 2 * values or entries < 1 or rest or values != len(self.layouts.all[0]):
            raise StateFormatError(_FOREIGN)
        stored = np.frombuffer(packed, np.int64, offset=_OLD_HEADER.size).reshape(entries, words)
        sums = np.ascontiguousarray(stored[:, 3:]).view(np.float64)
        high, low = np.diff(sums[:, ::2], axis=0), np.diff(sums[:, 1::2], axis=0)
        exact: Floats = high + (low + _rounding(sums[:-1, ::2], sums[1:, ::2], high))
        fixed = stored[1:, : self.plan.layout.first]
        return until, int(stored[0, 0]), self._today(fixed, 0, exact.view(np.int64))

    def _grow(self, needed: int) -> None:
        """Move everything to an array in which at least half is free."""
        slots, old = len(self._slots), self._log
        regions = old.regions[:slots]
        capacity = int((regions[:, kernels.LIMIT] - regions[:, kernels.BEGIN]).sum())
        entries = np.zeros((2 * (capacity + needed) + 4_096, self.plan.words), np.int64)
        self._log = old._replace(ints=entries, floats=entries.view(np.float64))
        kernels.compact(old, self._log, slots)

    def _start_index(self, needed: int) -> None:
        """An empty index with room; histories enter it anew, without the ids that have expired."""
        regions = self._log.regions[: len(self._slots)]
        indexed = regions[regions[:, kernels.INDEXED] == 1]
        live = int((indexed[:, kernels.END] - indexed[:, kernels.START]).sum()) + needed
        regions[:, kernels.INDEXED] = 0
        self._log.used[1] = 0
        self._log = self._log._replace(seen=np.zeros(1 << (4 * live + 1).bit_length(), np.int64))

    def pack(self, slots: Ints, until: int = 0) -> list[bytes]:
        """Each slot's history as versioned bytes.

        Args:
            slots: int64 (n,).
            until: Place in the bucket's order of arrival up to which events are in the histories.
        """
        kept = self.plan.kept_words
        regions = self._log.regions[slots]
        ends = np.cumsum(3 + kept * (regions[:, kernels.END] - regions[:, kernels.START]))
        words = np.empty(ends[-1] if len(ends) else 0, np.int64)
        kernels.pack(self._log, slots, self._header, until, kept, words)
        self._written[slots] = until
        data, bounds = words.tobytes(), [0, *(8 * ends).tolist()]
        return [data[begin:end] for begin, end in pairwise(bounds)]

    def observe(self, entries: Entries) -> tuple[Floats, Ints]:
        """Add events one after the other; each sees its windows, itself included.

        Args:
            entries: The events in their order of arrival.

        Returns:
            The features, float64 (n, columns), undefined for repeats; and for each event
            ``NEW``, ``LATE``, ``DUPLICATE`` or, with another content, ``CONFLICT``, int64 (n,).
        """
        plan, n = self.plan, len(entries.slots)
        features, verdicts = np.empty((n, len(plan.columns))), np.zeros(n, np.int64)
        lows, highs = plan.bounds(entries.times)
        rows = entries.rows

        def run(at: int) -> int:
            return self._observe(
                self._log,
                rows,
                plan.layout,
                plan.plan,
                plan.categories,
                lows,
                highs,
                features,
                verdicts,
                at,
            )

        self._run(run, entries)
        return features, verdicts

    def add_again(self, entries: Entries) -> None:
        """Add events that ``observe`` took once, in the same order; the outcome is the same."""
        self._add_all(entries, self.plan.plan)

    def _add_all(self, entries: Entries, plan: Plan) -> None:
        rows, layout = entries.rows, self.plan.layout
        self._run(lambda at: self._add(self._log, rows, layout, plan, at), entries)

    def learn(self, entries: Entries) -> Ints:
        """Add entries; one whose id is there already replaces it, or is a mere repeat.

        Returns:
            ``NEW``, ``DUPLICATE`` or, where it replaced another, ``CONFLICT``, int64 (n,).
        """
        verdicts = np.zeros(len(entries.slots), np.int64)
        rows = entries.rows
        self._run(lambda at: self._learn(self._log, rows, self.plan.layout, verdicts, at), entries)
        return verdicts

    def learn_new(self, entries: Entries) -> None:
        """As ``learn`` of entries with ids that are not there yet: none is looked for."""
        self._add_all(entries, self.plan.plan._replace(horizon_ms=-kernels.NEVER_MS))

    def _run(self, kernel: Callable[[int], int], entries: Entries) -> None:
        at = kernel(0)
        while at < len(entries.slots):
            self._make_room(int(entries.slots[at]))
            at = kernel(at)

    def _make_room(self, slot: int) -> None:
        """Grow what has no room for one more entry of a history."""
        region = self._log.regions[slot]
        if kernels.index_is_full(self._log, slot):
            self._start_index(int(region[kernels.END] - region[kernels.START]))
        else:
            self._grow(4 * int(region[kernels.LIMIT] - region[kernels.BEGIN]))

    def measure(self, slots: Ints, times: Ints) -> Floats:
        """The windows of events that are no entries; entries they no longer need are forgotten.

        Args:
            slots: int64 (n,).
            times: Event times, epoch ms, int64 (n,).

        Returns:
            float64 (n, columns).
        """
        plan = self.plan
        features = np.empty((len(slots), len(plan.columns)))
        lows, highs = plan.bounds(times)
        self._measure(
            self._log, slots, times, plan.layout, plan.plan, plan.categories, lows, highs, features
        )
        return features


def _new_log(entries: Ints, slots: int) -> Log:
    floats: Floats = entries.view(np.float64)
    regions = np.zeros((slots, 6), np.int64)
    return Log(entries, floats, regions, np.zeros(2, np.int64), np.zeros(1_024, np.int64))


def _rounding(before: Floats, after: Floats, difference: Floats) -> Floats:
    """What ``after - before`` lost when it was rounded (Knuth's TwoSum)."""
    part = difference - after
    error: Floats = (after - (difference - part)) + (-before - part)
    return error


def as_matrix(columns: Sequence[Floats], n: int) -> Floats:
    """Columns side by side, float64 (n, columns)."""
    return np.stack(columns, axis=1) if columns else np.empty((n, 0))
