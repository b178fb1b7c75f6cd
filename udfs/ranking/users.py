"""One user's state: the last items with counts, totals and the running session, in packed bytes."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from udfs.ranking.arrays import DAY_MS, Keys, Singles

__all__ = ["DEFAULT_LIMITS", "ENTRY", "UserLimits", "UserState"]

ENTRY = np.dtype([("key", "<u8"), ("last_ms", "<i8"), ("count", "<f4")])
"""One item of a history: its key, event time of the last purchase, purchases so far."""

_HEAD = struct.Struct("<qqqqqdq")
_NEVER = -(2**62)


@dataclass(frozen=True, slots=True)
class UserLimits:
    """What a user's state holds at most.

    Attributes:
        items: Distinct items, the last ones.
        session_gap_ms: A pause longer than this begins a new session.
        idle_ms: A user without a purchase for longer is as new, in event time.
    """

    items: int = 256
    session_gap_ms: int = 30 * 60 * 1_000
    idle_ms: int = 365 * DAY_MS


DEFAULT_LIMITS = UserLimits()


@dataclass(slots=True)
class UserState:
    """What is kept of one user.

    Attributes:
        entries: Of type ``ENTRY``, by event time of the last purchase and key, the newest last.
        first_ms: Event time of the first purchase, epoch.
        last_ms: Of the newest.
        baskets: Purchases of one event time so far.
        session_start_ms: When the running session began.
        session_items: Items bought in it.
        price_sum: Sum of the prices that were known.
        prices: How many were.
    """

    entries: npt.NDArray[Any] = field(default_factory=lambda: np.empty(0, ENTRY))
    first_ms: int = -_NEVER
    last_ms: int = _NEVER
    baskets: int = 0
    session_start_ms: int = _NEVER
    session_items: int = 0
    price_sum: float = 0.0
    prices: int = 0

    def add(
        self,
        keys: Keys,
        time_ms: int,
        prices: Singles | None = None,
        limits: UserLimits = DEFAULT_LIMITS,
    ) -> None:
        """Take a basket: items bought at one event time.

        A late one counts in the history and the totals; the session is that of the newest.

        Args:
            keys: Items, uint64 (n,); one named twice counts twice.
            time_ms: Event time, epoch.
            prices: float32 (n,), NaN where unknown; None if all are.
            limits: What is kept.
        """
        if not len(keys):
            return
        if prices is not None:
            known = prices[np.isfinite(prices)]
            self.price_sum += float(known.sum(dtype=np.float64))
            self.prices += len(known)
        self._count(len(keys), time_ms, limits.session_gap_ms)
        self._merge(keys, time_ms, limits.items)

    def as_of(self, time_ms: int, limits: UserLimits = DEFAULT_LIMITS) -> UserState:
        """The state at an event time: itself, or a new one after too long a pause."""
        return self if time_ms - self.last_ms <= limits.idle_ms else UserState()

    def _count(self, items: int, time_ms: int, gap_ms: int) -> None:
        if time_ms > self.last_ms + gap_ms:
            self.session_start_ms, self.session_items = time_ms, 0
        if time_ms >= self.session_start_ms:
            self.session_items += items
        self.baskets += time_ms != self.last_ms
        self.first_ms = min(self.first_ms, time_ms)
        self.last_ms = max(self.last_ms, time_ms)

    def _merge(self, keys: Keys, time_ms: int, most: int) -> None:
        new, counts = np.unique(keys, return_counts=True)
        fresh = np.zeros(len(new), ENTRY)
        fresh["key"], fresh["last_ms"], fresh["count"] = new, time_ms, counts
        at = np.searchsorted(new, self.entries["key"])
        at[at == len(new)] = 0
        again = new[at] == self.entries["key"]
        old = self.entries[again]
        fresh["count"][at[again]] += old["count"]
        fresh["last_ms"][at[again]] = np.maximum(old["last_ms"], time_ms)
        merged = np.concatenate((self.entries[~again], fresh))
        order = np.lexsort((merged["key"], merged["last_ms"]))
        self.entries = merged[order][-most:]

    def pack(self) -> bytes:
        """The state as bytes, at most 56 + 20 * ``UserLimits.items``."""
        head = _HEAD.pack(
            self.first_ms,
            self.last_ms,
            self.baskets,
            self.session_start_ms,
            self.session_items,
            self.price_sum,
            self.prices,
        )
        return head + self.entries.tobytes()

    @staticmethod
    def last_ms_of(packed: bytes) -> int:
        """``last_ms`` of what ``pack`` gave, without the rest."""
        return int(_HEAD.unpack_from(packed)[1])

    @classmethod
    def unpack(cls, packed: bytes) -> UserState:
        """What ``pack`` gave.

        Raises:
            ValueError, struct.error: The bytes are not such a state.
        """
        head = _HEAD.unpack_from(packed)
        return cls(np.frombuffer(packed, ENTRY, offset=_HEAD.size).copy(), *head)
