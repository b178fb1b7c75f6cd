"""Readings that wait for their windows to close, of the keys of one bucket."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from udfs.compiled import Ints
from udfs.features.histories import Entries, Histories
from udfs.features.layouts import Layouts, StateFormatError
from udfs.features.log_kernels import END, NEVER_MS, START, TIME
from udfs.features.part_histories import part_log
from udfs.features.window_plan import WindowPlan
from udfs.rollup import kernels
from udfs.rollup.kernels import Closed, Rules

_MARK = struct.Struct("<Bqq")  # version; end of the last window the clock closed; silent since
_MARK_VERSION = 1
_ROOM = 256
_NO_END_MS = 2**62


class Marks(NamedTuple):
    """What is kept of each key beside its readings, int64 (slots,).

    Attributes:
        idle_until: The end of its last window that the clock closed.
        silent_since: The time of its newest reading when its silence was told.
    """

    idle_until: Ints
    silent_since: Ints

    @classmethod
    def none(cls, slots: int) -> Marks:
        """Those of keys that were never idle."""
        return cls(np.full(slots, NEVER_MS), np.full(slots, NEVER_MS))

    def with_room(self, slots: int) -> Marks:
        """The same, with room for so many."""
        more = Marks.none(max(0, slots - len(self.idle_until)))
        return Marks(*(np.concatenate(pair) for pair in zip(self, more, strict=True)))


class OpenWindows(Histories):
    """The readings of a bucket's keys, from their arrival until their window closes, and longer.

    They are kept for as long as a repeat of one is looked for.

    Args:
        plan: Of the readings: which series, how long.
        rules: Of the windows.
        read: Gives a key's packed readings, or none.
        read_mark: Gives a key's packed mark, or none.
        layouts: How packed readings may lie.
    """

    _roll = staticmethod(kernels.roll)
    _close_all = staticmethod(kernels.close_all)

    def __init__(
        self,
        plan: WindowPlan,
        rules: Rules,
        read: Callable[[str], bytes | None] = lambda _: None,
        read_mark: Callable[[str], bytes | None] = lambda _: None,
        layouts: Layouts | None = None,
    ) -> None:
        self._rules, self._read_mark = rules, read_mark
        super().__init__(plan, read, layouts=layouts)

    def clear(self) -> None:
        """See the base class."""
        super().clear()
        self.marks = Marks.none(1_024)

    def _open(self, entity: str) -> None:
        super()._open(entity)
        slot = len(self) - 1
        if slot == len(self.marks.idle_until):
            self.marks = self.marks.with_room(2 * slot)
        packed = self._read_mark(entity)
        if packed is not None:
            if len(packed) != _MARK.size or packed[0] != _MARK_VERSION:
                raise StateFormatError(
                    "the stored state is another release's: start without it, or with that release"
                )
            _, self.marks.idle_until[slot], self.marks.silent_since[slot] = _MARK.unpack(packed)

    def pack_marks(self, slots: Ints) -> list[bytes]:
        """Each key's mark as versioned bytes."""
        pairs = zip(*(column[slots].tolist() for column in self.marks), strict=True)
        return [_MARK.pack(_MARK_VERSION, *pair) for pair in pairs]

    def roll(self, entries: Entries) -> tuple[Ints, Closed]:
        """Take readings in their order of arrival; windows close on the way.

        Returns:
            ``NEW``, ``DUPLICATE``, ``CONFLICT`` or, for a reading of a closed window, ``LATE``,
            int64 (n,); and the windows that have closed.
        """
        n, at = len(entries.slots), 0
        verdicts, rows = np.zeros(n, np.int64), entries.rows
        closed = self._room(n // 8 + _ROOM)
        while at < n:
            at = self._roll(
                self._log,
                rows,
                self.plan.layout,
                self._rules,
                self.marks.idle_until,
                verdicts,
                closed,
                at,
            )
            if at < n and kernels.is_full(closed, self._rules):
                closed = _grown(closed)
            elif at < n:
                self._make_room(int(entries.slots[at]))
        return verdicts, _cut(closed)

    def close(self, slots: Ints, reason: int, untils: Ints | None = None) -> Closed:
        """Close windows of some keys.

        Args:
            slots: The keys', int64 (n,).
            reason: Why.
            untils: Those that end later stay open, epoch ms, int64 (n,); none: all are closed.
        """
        untils = np.full(len(slots), _NO_END_MS) if untils is None else untils
        at, closed = 0, self._room(2 * len(slots) + _ROOM)
        while True:
            at += self._close_all(
                self._log,
                slots[at:],
                untils[at:],
                reason,
                self.plan.layout,
                self._rules,
                self.marks.idle_until,
                closed,
            )
            if at == len(slots):
                return _cut(closed)
            closed = _grown(closed)

    @property
    def lateness_ms(self) -> int:
        """How far a key's time is past the end of a window that closes."""
        return self._rules.lateness_ms

    def newest(self, slots: Ints) -> Ints:
        """The time of each key's newest reading, int64 (n,)."""
        times: Ints = self._log.ints[self._log.regions[slots, END], TIME]
        return times

    def open_slots(self) -> Ints:
        """The keys that have readings in a window that is not closed."""
        return self.open_until(np.full(len(self), _NO_END_MS))[0]

    def open_until(self, times_ms: Ints) -> tuple[Ints, Ints]:
        """The keys with an open window that ends at or before a time of their own.

        Args:
            times_ms: Each key's, epoch ms, int64 (keys,).

        Returns:
            The keys, and where the last such window of each one ends, both int64 (n,).
        """
        slots, every_ms = np.arange(len(self)), self._rules.every_ms
        regions, newest = self._log.regions[slots], self.newest(slots)
        closed = (newest - self._rules.lateness_ms) // every_ms * every_ms
        closed = np.maximum(closed, self.marks.idle_until[slots])
        ends = np.minimum(newest // every_ms * every_ms + every_ms, times_ms // every_ms * every_ms)
        found = np.flatnonzero((regions[:, END] > regions[:, START]) & (ends > closed))
        return found, ends[found]

    def _room(self, windows: int) -> Closed:
        windows += 4 * (self._rules.lateness_ms // self._rules.every_ms + 2)
        whole = [np.empty(windows, np.int64) for _ in range(5)]
        carried = len(self.plan.series) - self._rules.carried
        values = np.empty((windows, len(self._rules.columns)))
        newest = np.empty((windows, carried))
        return Closed._make([*whole, values, newest, np.zeros(1, np.int64)])


class PartWindows(OpenWindows):
    """The same for one of several threads: slots count from 0 and nothing is packed.

    Args:
        plan: Of the readings.
        rules: Of the windows.
        lengths: The most readings of each key, int64 (keys,).
    """

    _roll = staticmethod(kernels.roll_apart)
    _close_all = staticmethod(kernels.close_all_apart)

    def __init__(self, plan: WindowPlan, rules: Rules, lengths: Ints) -> None:
        super().__init__(plan, rules)
        self._log = part_log(plan, lengths)
        self.marks = Marks.none(len(lengths))


def _grown(closed: Closed) -> Closed:
    return Closed._make(
        [*(np.concatenate([c, np.empty_like(c)]) for c in closed[:-1]), closed.used]
    )


def _cut(closed: Closed) -> Closed:
    used = int(closed.used[0])
    return Closed._make([*(column[:used] for column in closed[:-1]), closed.used])
