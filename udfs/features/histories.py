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
from udfs.features import measure_kernels, pane_kernels
from udfs.features.layouts import FOREIGN, Layouts, StateFormatError
from udfs.features.log_kernels import Log, Rows
from udfs.features.measure_kernels import Plan
from udfs.features.packed_panes import PackedPanes, unpack_panes
from udfs.features.slot_table import SlotTable
from udfs.features.window_plan import WindowPlan

# Version, whether entries have ids, layout, series, layout of panes (zero without, entries stay
# aligned); place in the order of arrival; time of the newest expired entry.
_HEADER = struct.Struct("<BBHHHqq")
_VERSION = 3
_PANED_VERSION = 4  # panes lie between header and entries
_OLD_HEADER = struct.Struct("<BBHIq")  # version 2: version, values, words per entry, zero; place
_OLD_VERSION = 2


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


_NEVER = kernels.NEVER_MS


class Histories:
    """The histories of one bucket's entities.

    Args:
        plan: Which series they have, and what is measured.
        read: Gives an entity's packed history, or none if it has none yet.
        max_entries: The array's size at which unpacked histories are better dropped.
        layouts: How packed histories may lie; none if all are as today.
        pane_layouts: And how their panes.
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
        pane_layouts: Layouts | None = None,
    ) -> None:
        self.plan = plan
        self.layouts = layouts or Layouts([s.name for s in plan.series])
        self._pane_layouts = pane_layouts or Layouts(plan.pane_names)
        self._paned = bool(plan.pane_names)
        self._read = read
        self._max_entries = max_entries
        self._identified = plan.layout.first > kernels.ID
        version, panes = _VERSION, 0
        if self._paned:
            version, panes = _PANED_VERSION, self._pane_layouts.today
        header = _HEADER.pack(
            version, self._identified, self.layouts.today, len(plan.series), panes, 0, 0
        )
        self._header = int(np.frombuffer(header, np.int64)[0])
        self.clear()

    def clear(self) -> None:
        """Drop all that is unpacked, which must be stored elsewhere."""
        self._names: list[str] = []
        self._slots = SlotTable()
        self._written = np.zeros(1_024, np.int64)
        self._log = _new_log(np.zeros((4_096, self.plan.words), np.int64), 1_024)

    def __len__(self) -> int:
        """How many entities are unpacked."""
        return len(self._names)

    def __contains__(self, entity: str) -> bool:
        """Whether an entity is unpacked."""
        return bool(self._slots.find([entity])[0] >= 0)

    @property
    def entities(self) -> tuple[str, ...]:
        """The entities that are unpacked."""
        return tuple(self._names)

    def names(self, slots: Ints) -> list[str]:
        """The entity of each slot."""
        return [self._names[slot] for slot in slots.tolist()]

    def newest_ms(self, entities: Sequence[str]) -> Ints:
        """Time of each one's newest entry, expired or not; ``NEVER_MS`` of one that is packed."""
        slots = self._slots.find(entities)
        ends = self._log.regions[slots, kernels.END]
        return np.where(slots >= 0, self._log.ints[ends, kernels.TIME], _NEVER)

    def stored_newest_ms(self, packed: bytes) -> int:
        """Time of the newest entry of a packed history, expired or not.

        Raises:
            StateFormatError: it is of another layout or version.
        """
        _, oldest_ms, entries = self._unpack(self._without_panes(packed)[0])
        return int(entries[-1, kernels.TIME]) if len(entries) else oldest_ms

    def forget(self, entities: Sequence[str]) -> None:
        """Begin these histories anew, those that are unpacked."""
        slots = self._slots.find(entities)
        for slot in slots[slots >= 0]:
            region = self._log.regions[slot]
            region[kernels.START] = region[kernels.END]
            region[kernels.PANES_LIMIT] = region[kernels.PANES]
            self._log.ints[region[kernels.END], kernels.TIME] = _NEVER

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
        slots = self._slots.find(entities)
        unknown = np.flatnonzero(slots < 0)
        if not len(unknown):
            return slots
        opened = [*dict.fromkeys(entities[n] for n in unknown.tolist())]
        for entity in opened:
            self._open(entity)
        self._slots.add(opened)
        return self._slots.find(entities)

    def _open(self, entity: str) -> None:
        packed = self._read(entity)
        until, oldest_ms, entries, panes = (0, kernels.NEVER_MS, self._none, None)
        if packed is not None:
            packed, panes = self._without_panes(packed)
            until, oldest_ms, entries = self._unpack(packed)
        slot = len(self._names)
        if slot == len(self._log.regions):
            regions = np.concatenate([self._log.regions, np.zeros_like(self._log.regions)])
            self._log = self._log._replace(regions=regions)
            self._written = np.concatenate([self._written, np.zeros_like(self._written)])
        capacity = max(kernels.MIN_CAPACITY, 2 * (len(entries) + 1))
        if self._log.used[0] + capacity > len(self._log.ints):
            self._grow(capacity)
        begin = int(self._log.used[0])
        self._log.used[0] += capacity
        self._log.regions[slot] = begin, begin, begin, begin + capacity, -begin, 0, begin, begin
        kernels.unpack(self._log, slot, oldest_ms, entries, self.plan.layout)
        self._written[slot] = until
        self._names.append(entity)
        if panes is not None and self._paned:
            while not pane_kernels.put(
                self._log, self._log.regions[slot], *panes, self.plan.plan.panes
            ):
                self._grow(int(self._log.used[2]))

    @property
    def _none(self) -> Ints:
        return np.empty((0, self.plan.kept_words), np.int64)

    def _unpack(self, packed: bytes) -> tuple[int, int, Ints]:
        """Place in the order of arrival, time of the newest expired entry, and the entries."""
        if packed[:1] == bytes([_OLD_VERSION]):
            return self._unpack_old(packed)
        if len(packed) < _HEADER.size or packed[0] != _VERSION:
            raise StateFormatError(FOREIGN)
        _, identified, layout, series, _, until, oldest_ms = _HEADER.unpack_from(packed)
        first = self.plan.layout.first
        entries, rest = divmod(len(packed) - _HEADER.size, 8 * (first + series))
        if bool(identified) != self._identified or rest:
            raise StateFormatError(FOREIGN)
        stored = np.frombuffer(packed, np.int64, offset=_HEADER.size)
        stored = stored.reshape(entries, first + series)
        return until, oldest_ms, self._today(stored[:, :first], layout, stored[:, first:])

    def _without_panes(self, packed: bytes) -> tuple[bytes, PackedPanes | None]:
        """A history as version 3 has it, and its panes."""
        if packed[:1] != bytes([_PANED_VERSION]) or len(packed) < _HEADER.size + 16:
            return packed, None
        number = _HEADER.unpack_from(packed)[4]
        panes, end = unpack_panes(packed, _HEADER.size, self._pane_layouts, number)
        return bytes([_VERSION]) + packed[1 : _HEADER.size] + packed[end:], panes

    def _today(self, fixed: Ints, layout: int, values: Ints) -> Ints:
        today = self.layouts.values_of(layout, np.ascontiguousarray(values).view(np.float64))
        return np.concatenate([fixed, today.view(np.int64)], axis=1)

    def _unpack_old(self, packed: bytes) -> tuple[int, int, Ints]:
        """Version 2 kept running sums of each value; those of the first layout."""
        _, values, words, _, until = _OLD_HEADER.unpack_from(packed)
        entries, rest = divmod(len(packed) - _OLD_HEADER.size, 8 * words)
        if words != 3 + 2 * values or entries < 1 or rest or values != len(self.layouts.all[0]):
            raise StateFormatError(FOREIGN)
        stored = np.frombuffer(packed, np.int64, offset=_OLD_HEADER.size).reshape(entries, words)
        sums = np.ascontiguousarray(stored[:, 3:]).view(np.float64)
        high, low = np.diff(sums[:, ::2], axis=0), np.diff(sums[:, 1::2], axis=0)
        exact: Floats = high + (low + _rounding(sums[:-1, ::2], sums[1:, ::2], high))
        fixed = stored[1:, : self.plan.layout.first]
        return until, int(stored[0, 0]), self._today(fixed, 0, exact.view(np.int64))

    def _grow(self, needed: int) -> None:
        """Move everything to an array in which at least half is free."""
        slots, old = self._count, self._log
        regions = old.regions[:slots]
        capacity = int((regions[:, kernels.LIMIT] - regions[:, kernels.BEGIN]).sum())
        capacity += int((regions[:, kernels.PANES_LIMIT] - regions[:, kernels.PANES]).sum())
        entries = np.zeros((2 * (capacity + needed) + 4_096, self.plan.words), np.int64)
        self._log = old._replace(ints=entries, floats=entries.view(np.float64))
        kernels.compact(old, self._log, slots)

    @property
    def _count(self) -> int:
        return len(self._names)

    def _start_index(self, needed: int) -> None:
        """An empty index with room; histories enter it anew, without the ids that have expired."""
        regions = self._log.regions[: self._count]
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
        packed = _cut(words, ends)
        if not self._paned:
            return packed
        parts = zip(packed, self._packed_panes(slots), strict=True)
        at = _HEADER.size
        return [history[:at] + panes + history[at:] for history, panes in parts]

    def _packed_panes(self, slots: Ints) -> list[bytes]:
        panes = self.plan.plan.panes
        ends = np.cumsum(pane_kernels.packed_words(self._log, slots, panes))
        words = np.empty(ends[-1] if len(ends) else 0, np.int64)
        pane_kernels.pack(self._log, slots, panes, words)
        return _cut(words, ends)

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
        rows, bounds = entries.rows, plan.bounds(entries.times)

        def run(at: int) -> int:
            return self._observe(
                self._log, rows, plan.layout, plan.plan, bounds, features, verdicts, at
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
            slot = int(entries.slots[at])
            if pane_kernels.is_due(self._log, slot, self.plan.plan.panes):
                self._settle(slot)
            else:
                self._make_room(slot)
            at = kernel(at)

    def _make_room(self, slot: int) -> None:
        """Grow what has no room for one more entry of a history."""
        region = self._log.regions[slot]
        if kernels.index_is_full(self._log, slot):
            self._start_index(int(region[kernels.END] - region[kernels.START]))
        else:
            self._grow(4 * int(region[kernels.LIMIT] - region[kernels.BEGIN]))

    def _settle(self, slot: int) -> None:
        """Merge a history's older entries."""
        plan = self.plan.plan
        while not pane_kernels.settle(
            self._log, slot, self.plan.layout, plan.panes, plan.horizon_ms
        ):
            self._grow(int(self._log.used[2]))

    def warm_up(self) -> None:
        """Compile what merges entries into panes, if there are panes; there must be a history."""
        if self._paned:
            self._settle(0)
            self.pack(np.zeros(1, np.int64))

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
        bounds = plan.bounds(times)
        self._measure(self._log, slots, times, plan.layout, plan.plan, bounds, features)
        return features


def _new_log(entries: Ints, slots: int) -> Log:
    floats: Floats = entries.view(np.float64)
    regions = np.zeros((slots, kernels.REGION), np.int64)
    return Log(entries, floats, regions, np.zeros(3, np.int64), np.zeros(1_024, np.int64))


def _cut(words: Ints, ends: Ints) -> list[bytes]:
    data, bounds = words.tobytes(), [0, *(8 * ends).tolist()]
    return [data[begin:end] for begin, end in pairwise(bounds)]


def _rounding(before: Floats, after: Floats, difference: Floats) -> Floats:
    """What ``after - before`` lost when it was rounded (Knuth's TwoSum)."""
    part = difference - after
    error: Floats = (after - (difference - part)) + (-before - part)
    return error


def as_matrix(columns: Sequence[Floats], n: int) -> Floats:
    """Columns side by side, float64 (n, columns)."""
    return np.stack(columns, axis=1) if columns else np.empty((n, 0))
