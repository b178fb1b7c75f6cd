"""The users of a micro-batch: each read once, written once, and given whole baskets."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from udfs.ranking.arrays import keys_of
from udfs.ranking.users import UserLimits, UserState

__all__ = ["BatchUsers", "IdleUsers"]

_SWEEPS = 16  # in the time after which a user is idle


class State(Protocol):
    """Users to packed bytes, as Flink's map state."""

    def get(self, key: str) -> bytes | None:
        """One of it."""

    def put(self, key: str, value: bytes) -> None:
        """Write one."""

    def items(self) -> Iterable[tuple[str, bytes]]:
        """All of it."""

    def remove(self, key: str) -> None:
        """Forget one."""


@dataclass(slots=True)
class _Basket:
    """Purchases of one event time that are not in the user's state yet."""

    time_ms: int
    items: list[str] = field(default_factory=list)
    prices: list[float] = field(default_factory=list)


class BatchUsers:
    """The users of one batch, of one bucket.

    Args:
        state: Where they lie.
        limits: What is kept of each.
    """

    def __init__(self, state: State, limits: UserLimits) -> None:
        self._state = state
        self._limits = limits
        self._users: dict[str, UserState] = {}
        self._baskets: dict[str, _Basket] = {}
        self._changed: set[str] = set()

    def buy(self, user: str, time_ms: int, item: str, price: float | None) -> None:
        """Take a purchase; the next of the same time makes one basket with it."""
        basket = self._baskets.get(user)
        if basket is not None and basket.time_ms != time_ms:
            self._take(user)
            basket = None
        if basket is None:
            basket = self._baskets[user] = _Basket(time_ms)
        basket.items.append(item)
        basket.prices.append(np.nan if price is None else price)

    def of(self, user: str, time_ms: int) -> UserState:
        """A user with all that was bought so far, as of an event time; not to be changed."""
        if user in self._baskets:
            self._take(user)
        return self._read(user, time_ms)

    def write(self) -> None:
        """Store those that have changed, at the end of the batch."""
        for user in list(self._baskets):
            self._take(user)
        for user in self._changed:
            self._state.put(user, self._users[user].pack())
        self._changed.clear()

    def _take(self, user: str) -> None:
        basket = self._baskets.pop(user)
        prices = np.array(basket.prices, np.float32)
        state = self._read(user, basket.time_ms)
        state.add(keys_of(basket.items), basket.time_ms, prices, self._limits)
        self._changed.add(user)

    def _read(self, user: str, time_ms: int) -> UserState:
        found = self._users.get(user)
        if found is None:
            packed = self._state.get(user)
            found = UserState() if packed is None else UserState.unpack(packed)
        self._users[user] = found = found.as_of(time_ms, self._limits)
        return found


class IdleUsers:
    """Frees the state of users who are idle for twice ``idle_ms`` by their bucket's newest time.

    Who is idle for ``idle_ms`` by a time of their own is as new in any case. The rest of the time
    is for users whose events lag behind the others of their bucket.

    Args:
        idle_ms: See ``UserLimits``.
    """

    def __init__(self, idle_ms: int) -> None:
        self._idle_ms = idle_ms
        self._swept_ms: dict[int, int] = {}

    def sweep(self, bucket: int, newest_ms: int, state: State) -> int:
        """Look at all users of a bucket, if it is time to; returns how many were freed.

        Args:
            bucket: Whose state it is.
            newest_ms: Newest event time of the bucket, epoch.
            state: Of the bucket.
        """
        before_ms = self._swept_ms.get(bucket)
        if before_ms is not None and newest_ms - before_ms < self._idle_ms / _SWEEPS:
            return 0
        self._swept_ms[bucket] = newest_ms
        oldest_ms = newest_ms - 2 * self._idle_ms
        idle = [u for u, packed in state.items() if UserState.last_ms_of(packed) < oldest_ms]
        for user in idle:
            state.remove(user)
        return len(idle)
