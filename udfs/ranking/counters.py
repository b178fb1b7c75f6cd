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
from udfs.ranking.kernels import column_sums
from udfs.ranking.log import PurchaseLog

__all__ = ["HALF_LIVES_DAYS", "HALF_LIVES_MS", "ItemCounters"]

HALF_LIVES_DAYS = (3.0, 14.0, 60.0)
HALF_LIVES_MS = np.array(HALF_LIVES_DAYS) * DAY_MS
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
        """Take the state; see ``of_index`` and ``of_log``."""
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

    @classmethod
    def of_log(cls, log: PurchaseLog, origin_ms: int) -> ItemCounters:
        """The counts of a log's purchases, by number of the item; none is after the origin."""
        counted = cls.empty(len(log.item_ids), origin_ms)
        for place, half_life_ms in enumerate(HALF_LIVES_MS.tolist()):
            weights = np.exp2((log.times_ms - origin_ms) / half_life_ms)
            counted.sums[:, place] = np.bincount(log.items, weights, len(log.item_ids))
        np.minimum.at(counted.first_ms, log.items, log.times_ms)
        np.maximum.at(counted.last_ms, log.items, log.times_ms)
        return counted

    def add(self, rows: Rows, time_ms: int) -> None:
        """Count a purchase of each row at an event time, which may be an old one.

        Args:
            rows: int32 (n,); -1 is left out, one named twice counts twice.
            time_ms: Event time, epoch.
        """
        rows = rows[rows >= 0]
        self.reach(time_ms)
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

    def shares(self) -> Floats:
        """What a sum of 1 is of all items' sums, at any time, float64 (H,); 0 without purchases."""
        total = column_sums(self.sums)
        shares: Floats = np.divide(1.0, total, out=np.zeros_like(total), where=total > 0)
        return shares

    def reach(self, time_ms: int) -> None:
        """Move the origin if sums of that event time would leave the numbers' range."""
        if self._half_lives(time_ms).max() > _REBASE_HALF_LIVES:
            self.sums *= np.exp2(-self._half_lives(time_ms))
            self.origin_ms = time_ms

    def _half_lives(self, time_ms: int) -> Floats:
        half_lives: Floats = (time_ms - self.origin_ms) / HALF_LIVES_MS
        return half_lives
