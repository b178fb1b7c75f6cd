"""The items that requests are ranked from: a model version's, with live counts."""

from __future__ import annotations

from dataclasses import dataclass

from udfs.ranking.arrays import keys_of
from udfs.ranking.counters import ItemCounters
from udfs.ranking.index import ItemIndex
from udfs.ranking.live_popularity import ItemPopularity, PopularItems

__all__ = ["LiveItems"]


@dataclass
class LiveItems:
    """A version's items and their counts as the popularity topic has them.

    Attributes:
        version: Number of the version.
        index: Its items.
        counters: Their counts: those of the topic, and the version's own for items that the topic
            does not have yet.
    """

    version: int
    index: ItemIndex
    counters: ItemCounters

    @classmethod
    def of(cls, version: int, index: ItemIndex, popular: PopularItems) -> LiveItems:
        """Begin with what the topic says now."""
        live = cls(version, index, ItemCounters.of_index(index))
        live.take(dict(popular.items()))
        return live

    def take(self, changed: dict[str, ItemPopularity]) -> None:
        """Take popularities that were published."""
        if not changed:
            return
        rows = self.index.rows_of(keys_of(list(changed)))
        newest_ms = max(one.last_ms for one in changed.values())
        counters = self.counters
        counters.reach(newest_ms)
        for row, one in zip(rows.tolist(), changed.values(), strict=True):
            if row >= 0:
                counters.sums[row] = one.sums_at(counters.origin_ms)
                counters.first_ms[row], counters.last_ms[row] = one.first_ms, one.last_ms
