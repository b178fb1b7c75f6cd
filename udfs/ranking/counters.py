"""Decayed purchase counts of all items, exact at any event time.

All weights decay alike, so an item's count is kept as a sum of ``2^((time - origin) / half-life)``:
an event is one addition, and the order of the items needs no clock. A count at a time is that sum
times ``2^((origin - time) / half-life)``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from udfs.ranking.arrays import DAY_MS, Floats, Rows, Times
from udfs.ranking.index import ItemIndex

__all__ = ["HALF_LIVES_DAYS", "ItemCounters"]

HALF_LIVES_DAYS = (3.0, 14.0, 60.0)
_REBASE_HALF_LIVES = 256.0  # 2^256 still leaves 2^767 for the sums


class ItemCounters:
    """Purchases per item of an index, decayed with several half-lives.

    Attributes:
        sums: float64 (I, H), relative to ``origin_ms``.
        first_ms: Event time of each item's first purchase; the largest int64 if none.
        last_ms: Of its last; the smallest int64 if none.
        origin_ms: Event time at which a purchase weighs 1.
    """

    def __init__(self, sums: Floats, first_ms: Times, last_ms: Times, origin_ms: int) -> None:
        """Take the state; see ``of_index`` and ``unpack``."""
        self.sums = sums
        self.first_ms = first_ms
        self.last_ms = last_ms
        self.origin_ms = origin_ms

    @classmethod
    def of_index(cls, index: ItemIndex) -> ItemCounters:
        """The counts that a version was made with, to go on from."""
        return cls(
            index.popularity.astype(np.float64),
            index.first_ms.copy(),
            index.last_ms.copy(),
            index.as_of_ms,
        )

    @classmethod
    def empty(cls, items: int, origin_ms: int) -> ItemCounters:
        """No purchase yet."""
        limits = np.iinfo(np.int64)
        return cls(
            np.zeros((items, len(HALF_LIVES_DAYS))),
            np.full(items, limits.max, np.int64),
            np.full(items, limits.min, np.int64),
            origin_ms,
        )

    def add(self, rows: Rows, time_ms: int) -> None:
        """Count a purchase of each row at an event time, which may be an old one.

        Args:
            rows: int32 (n,); -1 is left out, one named twice counts twice.
            time_ms: Event time, epoch.
        """
        rows = rows[rows >= 0]
        if self._half_lives(time_ms).max() > _REBASE_HALF_LIVES:
            self._rebase(time_ms)
        np.add.at(self.sums, rows, np.exp2(self._half_lives(time_ms)))
        np.minimum.at(self.first_ms, rows, time_ms)
        np.maximum.at(self.last_ms, rows, time_ms)

    def at(self, rows: npt.NDArray[np.integer[Any]], time_ms: int) -> Floats:
        """Decayed counts as of an event time, float64 (n, H).

        Args:
            rows: (n,), each at least 0.
            time_ms: Event time, epoch; not before the purchases that were added.
        """
        counts: Floats = self.sums[rows] * np.exp2(-self._half_lives(time_ms))
        return counts

    def totals(self, time_ms: int) -> Floats:
        """The decayed counts of all items together, float64 (H,)."""
        total: Floats = self.sums.sum(axis=0) * np.exp2(-self._half_lives(time_ms))
        return total

    def _half_lives(self, time_ms: int) -> Floats:
        days = (time_ms - self.origin_ms) / DAY_MS
        return days / np.asarray(HALF_LIVES_DAYS)

    def _rebase(self, time_ms: int) -> None:
        self.sums *= np.exp2(-self._half_lives(time_ms))
        self.origin_ms = time_ms

    def moved_to(self, old: ItemIndex, new: ItemIndex) -> ItemCounters:
        """These counts for the rows of another version; items new to it start from its own."""
        moved = ItemCounters.of_index(new)
        moved._rebase(self.origin_ms)
        rows = old.rows_of(new.keys)
        known = rows >= 0
        for name in ("sums", "first_ms", "last_ms"):
            getattr(moved, name)[known] = getattr(self, name)[rows[known]]
        return moved

    def pack(self) -> bytes:
        """The state as bytes; ``unpack`` takes them back."""
        head = np.array([self.origin_ms, len(self.sums)], np.int64)
        return b"".join(a.tobytes() for a in (head, self.sums, self.first_ms, self.last_ms))

    @classmethod
    def unpack(cls, packed: bytes) -> ItemCounters:
        """What ``pack`` gave.

        Raises:
            ValueError: The bytes are not of that length.
        """
        origin_ms, items = np.frombuffer(packed, np.int64, 2).tolist()
        width = len(HALF_LIVES_DAYS)
        if len(packed) != 16 + 8 * items * (width + 2):
            raise ValueError(f"{len(packed)} bytes are not the counters of {items} items")
        sums = np.frombuffer(packed, np.float64, items * width, 16).reshape(items, width)
        times = np.frombuffer(packed, np.int64, 2 * items, 16 + 8 * items * width)
        return cls(sums.copy(), times[:items].copy(), times[items:].copy(), origin_ms)
