"""Popularity of items as it is kept, published and read: one item a record, exact in any order.

A purchase of weight ``w`` at event time ``t`` weighs ``w * 2 ** ((t - now) / H)`` at ``now``. What
of it does not hold ``now`` is ``w * 2 ** (t / H)``. The sum of that, kept as its logarithm, needs
no update while nothing happens, and its order among items needs no clock: a published record does
not age (forward decay: Cormode et al., ICDE 2009).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from heapq import nlargest
from threading import Lock
from typing import Any

import numpy as np
import orjson

from udfs.ranking.arrays import Floats
from udfs.ranking.counters import HALF_LIVES_MS

__all__ = ["ItemPopularity", "PopularItems", "PopularityError"]

NEVER_FIRST, NEVER_LAST = 2**63 - 1, -(2**63)
_RANKED_BY = 1  # the half-life by which candidates are popular, too
_LAYOUT = struct.Struct(f"<Bqq{len(HALF_LIVES_MS)}d")
_VERSION = 1
_SCHEMA_VERSION = 1


class PopularityError(ValueError):
    """A stored or published popularity that cannot be read; the text says why."""


@dataclass(frozen=True, slots=True)
class ItemPopularity:
    """What is kept of an item.

    Attributes:
        log2: Base-2 logarithms of the sums of ``w * 2 ** (t / H)``, one for each half-life; -inf
            before the first.
        first_ms: Event time of the first purchase, epoch ms; the largest int64 before it.
        last_ms: Event time of the newest; the smallest int64 before the first.
    """

    log2: tuple[float, ...] = (-np.inf,) * len(HALF_LIVES_MS)
    first_ms: int = NEVER_FIRST
    last_ms: int = NEVER_LAST

    @classmethod
    def of_sums(cls, sums: Floats, origin_ms: int, first_ms: int, last_ms: int) -> ItemPopularity:
        """From sums relative to an origin, as an index of items has them.

        Args:
            sums: float64 (H,).
            origin_ms: When a purchase weighs 1 in them.
            first_ms: Event time of the first purchase.
            last_ms: Of the newest.
        """
        with np.errstate(divide="ignore"):
            log2 = np.log2(sums) + origin_ms / HALF_LIVES_MS
        return cls(tuple(log2.tolist()), first_ms, last_ms)

    def sums_at(self, origin_ms: int) -> Floats:
        """The sums relative to an origin, float64 (H,)."""
        sums: Floats = np.exp2(np.array(self.log2) - origin_ms / HALF_LIVES_MS)
        return sums

    def add(self, time_ms: int, weight: float = 1.0) -> ItemPopularity:
        """With one more purchase, in any order."""
        own = time_ms / HALF_LIVES_MS + np.log2(weight)
        log2 = np.logaddexp2(np.array(self.log2), own)
        first_ms, last_ms = min(self.first_ms, time_ms), max(self.last_ms, time_ms)
        return ItemPopularity(tuple(log2.tolist()), first_ms, last_ms)

    def packed(self) -> bytes:
        """As it lies in the state."""
        return _LAYOUT.pack(_VERSION, self.first_ms, self.last_ms, *self.log2)

    @classmethod
    def unpacked(cls, data: bytes) -> ItemPopularity:
        """What ``packed`` gave.

        Raises:
            PopularityError: it is of another layout.
        """
        if len(data) != _LAYOUT.size or data[0] != _VERSION:
            raise PopularityError("a stored popularity has another layout: start without the state")
        _, first_ms, last_ms, *log2 = _LAYOUT.unpack(data)
        return cls(tuple(log2), first_ms, last_ms)

    def record(self, item: str) -> bytes:
        """As it is published, with the item as the key; the item must have been bought."""
        return orjson.dumps(
            {
                "schema_version": _SCHEMA_VERSION,
                "item": item,
                "log2": self.log2,
                "half_lives_ms": HALF_LIVES_MS.tolist(),
                "first_ms": self.first_ms,
                "last_ms": self.last_ms,
            }
        )

    @classmethod
    def of_record(cls, document: Any) -> ItemPopularity:
        """What ``record`` wrote.

        Raises:
            PopularityError: it is another document.
        """
        if not isinstance(document, Mapping) or document.get("schema_version") != _SCHEMA_VERSION:
            raise PopularityError(f"no popularity of schema version {_SCHEMA_VERSION}")
        log2, first_ms, last_ms = (document.get(name) for name in ("log2", "first_ms", "last_ms"))
        if document.get("half_lives_ms") != HALF_LIVES_MS.tolist():
            raise PopularityError("it has other half-lives: start with an empty topic")
        if not isinstance(log2, list) or not all(type(value) in (float, int) for value in log2):
            raise PopularityError("log2 must be numbers")
        if type(first_ms) is not int or type(last_ms) is not int:
            raise PopularityError("first_ms and last_ms must be whole numbers")
        return cls(tuple(map(float, log2)), first_ms, last_ms)


class PopularItems:
    """The items of a popularity topic; one thread fills it, any other may ask.

    It is what ``TopicSource`` fills: ``row_of`` and ``put`` are a table's.
    """

    def __init__(self) -> None:
        self._items: dict[str, ItemPopularity] = {}
        self._changed: set[str] = set()
        self._top: list[str] = []
        self._stale = False
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._items)

    def row_of(self, document: Any) -> ItemPopularity:
        """A record's content.

        Raises:
            PopularityError: it is none of these records.
        """
        return ItemPopularity.of_record(document)

    def put(self, key: str, row: ItemPopularity | None, time_ms: int) -> None:
        """Take a row, or forget the item."""
        with self._lock:
            if row is None:
                self._items.pop(key, None)
            else:
                self._items[key] = row
            self._changed.add(key)
            self._stale = True

    def take_changed(self) -> dict[str, ItemPopularity]:
        """The items that came since the last call; for one caller."""
        with self._lock:
            changed, self._changed = self._changed, set()
            return {item: self._items[item] for item in changed if item in self._items}

    def items(self) -> Iterator[tuple[str, ItemPopularity]]:
        """All items there are now."""
        with self._lock:
            return iter(list(self._items.items()))

    def top(self, count: int) -> list[str]:
        """The most popular items, the best one first; fewer if there are fewer."""
        with self._lock:
            if self._stale or len(self._top) < min(count, len(self._items)):
                wanted = max(count, len(self._top))
                best = nlargest(wanted, self._items.items(), key=_rank)
                self._top = [item for item, _ in best]
                self._stale = False
            return self._top[:count]


def _rank(found: tuple[str, ItemPopularity]) -> tuple[float, str]:
    return found[1].log2[_RANKED_BY], found[0]
