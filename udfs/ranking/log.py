"""A log of purchases as arrays, and its baskets in event-time order."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from udfs.ranking.arrays import Keys, Rows, Singles, Times, keys_of

__all__ = ["Basket", "PurchaseLog", "item_keys", "log_of"]


@dataclass(frozen=True, slots=True)
class Basket:
    """What one user bought at one event time.

    Attributes:
        user: Number of the user.
        time_ms: Event time, epoch.
        items: Numbers of the items, int32 (n,).
        prices: float32 (n,), NaN where unknown.
    """

    user: int
    time_ms: int
    items: Rows
    prices: Singles


@dataclass(frozen=True)
class PurchaseLog:
    """Purchases, one a row, ascending by event time; rows of a basket are neighbours.

    Attributes:
        users: int32 (n,), numbers from 0.
        items: int32 (n,), places in ``item_ids``.
        times_ms: Event times, epoch.
        prices: float32 (n,), NaN where unknown.
        baskets: int32 (n,), ascending from 0: one user and one event time each.
        item_ids: Texts (I,).
        categories: A text per item (I,).
        user_ids: Texts.
    """

    users: Rows
    items: Rows
    times_ms: Times
    prices: Singles
    baskets: Rows
    item_ids: npt.NDArray[np.str_]
    categories: npt.NDArray[np.str_]
    user_ids: npt.NDArray[np.str_]

    def __len__(self) -> int:
        return len(self.users)

    def part(self, rows: slice) -> PurchaseLog:
        """Some neighbouring rows, with all items and users; a basket is not to be cut."""
        return PurchaseLog(
            self.users[rows],
            self.items[rows],
            self.times_ms[rows],
            self.prices[rows],
            self.baskets[rows],
            self.item_ids,
            self.categories,
            self.user_ids,
        )

    def before(self, time_ms: int) -> PurchaseLog:
        """The purchases before an event time."""
        return self.part(slice(0, self.place_of(time_ms)))

    def since(self, time_ms: int) -> PurchaseLog:
        """The purchases from an event time on."""
        return self.part(slice(self.place_of(time_ms), None))

    def place_of(self, time_ms: int) -> int:
        """The first row of an event time, or what would be."""
        return int(np.searchsorted(self.times_ms, time_ms))

    def in_baskets(self) -> Iterator[Basket]:
        """The baskets in order."""
        starts = np.flatnonzero(np.diff(self.baskets, prepend=-1))
        for start, end in pairwise([*starts.tolist(), len(self)]):
            yield Basket(
                int(self.users[start]),
                int(self.times_ms[start]),
                self.items[start:end],
                self.prices[start:end],
            )


def log_of(
    user_ids: npt.NDArray[np.str_],
    item_ids: npt.NDArray[np.str_],
    times_ms: Times,
    prices: Singles,
    categories: dict[str, str],
) -> PurchaseLog:
    """Order purchases and number their users, items and baskets.

    Args:
        user_ids: Texts (n,).
        item_ids: Texts (n,).
        times_ms: Event times (n,), epoch.
        prices: (n,), NaN where unknown.
        categories: Of each item; "" where one is missing.
    """
    users, user_numbers = np.unique(user_ids, return_inverse=True)
    items, item_numbers = np.unique(item_ids, return_inverse=True)
    order = np.lexsort((user_numbers, times_ms))
    user_numbers, times_ms = user_numbers[order], times_ms[order]
    begins = (np.diff(user_numbers, prepend=-1) != 0) | (np.diff(times_ms, prepend=-1) != 0)
    return PurchaseLog(
        user_numbers.astype(np.int32),
        item_numbers[order].astype(np.int32),
        times_ms,
        prices[order].astype(np.float32),
        (np.cumsum(begins) - 1).astype(np.int32),
        items,
        np.array([categories.get(text, "") for text in items.tolist()]),
        users,
    )


def item_keys(log: PurchaseLog) -> Keys:
    """The key of each item of the log, uint64 (I,)."""
    return keys_of(log.item_ids.tolist())
