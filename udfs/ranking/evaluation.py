"""How good a ranking is: hit rate, NDCG and coverage of its first items, against baselines.

The protocols, all with one split in global time:

- ``next_basket``: for each user with a purchase before the split, one request as of the split; the
  wanted items are those of the user's first basket from the split on.
- ``every_basket``: a request just before each basket from the split on, with the state of that
  moment; the version is that of the split all the time.

With seen items filtered, wanted ones that the user had before do not count, and who is left without
a wanted item is not asked. A wanted item that the version does not know is missed by everyone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from udfs.ranking.arrays import Rows, Singles, largest
from udfs.ranking.examples import wanted_of
from udfs.ranking.log import PurchaseLog
from udfs.ranking.replay import Replay, Request

__all__ = [
    "Measured",
    "Ranker",
    "Tally",
    "every_basket",
    "measure",
    "next_basket",
    "ranked_by",
]

Ranker = Callable[[Request], Rows]
"""Rows of a request's first items, the best first, at least as many as are looked at."""

Case = tuple[Request, frozenset[int], int]
"""A request, the rows that are wanted, and how many wanted items there are, known or not."""

FIRST = 10


@dataclass(frozen=True, slots=True)
class Measured:
    """Figures of one ranking.

    Attributes:
        requests: How many were asked.
        hit_rate: Share of the requests with a wanted item among the first.
        ndcg: Mean normalised discounted cumulative gain of the first.
        coverage: Share of the items on sale that were among the first of some request.
    """

    requests: int
    hit_rate: float
    ndcg: float
    coverage: float

    def document(self) -> dict[str, Any]:
        """For a report, rounded."""
        return {name: round(value, 5) for name, value in asdict(self).items()}


@dataclass
class Tally:
    """Adds up rankings.

    Attributes:
        first: How many items of each are looked at.
    """

    first: int = FIRST
    _hits: list[bool] = field(default_factory=list)
    _gains: list[float] = field(default_factory=list)
    _shown: set[int] = field(default_factory=set)

    def add(self, rows: Rows, wanted: frozenset[int], count: int) -> None:
        """Count one ranking.

        Args:
            rows: The first items, the best first; more are not looked at.
            wanted: Rows.
            count: How many wanted items there are, known ones and others; at least 1.
        """
        shown = rows[: self.first].tolist()
        found = np.array([row in wanted for row in shown], bool)
        discounts = 1 / np.log2(np.arange(2, self.first + 2))
        best = discounts[: min(self.first, count)].sum()
        self._hits.append(bool(found.any()))
        self._gains.append(float(discounts[: len(found)][found].sum() / best))
        self._shown.update(shown)

    def measured(self, items: int) -> Measured:
        """The figures; NaN without a request.

        Args:
            items: On sale, at least 1.
        """
        if not self._hits:
            return Measured(0, float("nan"), float("nan"), 0.0)
        hits, gains = float(np.mean(self._hits)), float(np.mean(self._gains))
        return Measured(len(self._hits), hits, gains, len(self._shown) / items)


def ranked_by(score: Callable[[Singles], npt.NDArray[Any]], first: int = FIRST) -> Ranker:
    """Rank the candidates by a model's scores of their features."""

    def ranked(request: Request) -> Rows:
        scores = np.asarray(score(request.features), np.float64)
        return request.found.rows[largest(scores, first)]

    return ranked


def next_basket(replay: Replay, log: PurchaseLog, split_ms: int) -> Iterator[Case]:
    """One case per user who was known at the split and came again; see the module's text.

    Args:
        replay: Has taken all before the split and nothing else.
        log: The whole log.
        split_ms: Event time, epoch.
    """
    came = set[int]()
    for basket in log.since(split_ms).in_baskets():
        if basket.user in came or basket.user not in replay.users:
            continue
        came.add(basket.user)
        request = replay.request(basket.user, split_ms)
        yield from _case(replay, request, basket.items)


def every_basket(replay: Replay, log: PurchaseLog, split_ms: int) -> Iterator[Case]:
    """One case per basket from the split on, which is then taken; see the module's text."""
    for basket, request in replay.requests(log.since(split_ms)):
        yield from _case(replay, request, basket.items)


def _case(replay: Replay, request: Request, items: Rows) -> Iterator[Case]:
    filtered = replay.options.filter_seen
    rows = replay.rows[items]
    wanted = wanted_of(request, rows, filtered)
    count = len(wanted) + len(set(items[rows < 0].tolist()))
    if count:
        yield request, wanted, count


def measure(
    cases: Iterable[Case], rankers: dict[str, Ranker], items_on_sale: int
) -> dict[str, Measured]:
    """Measure several rankings on the same cases, which are gone through once."""
    tallies = {name: Tally() for name in rankers}
    for request, wanted, count in cases:
        for name, ranker in rankers.items():
            tallies[name].add(ranker(request), wanted, count)
    return {name: tally.measured(items_on_sale) for name, tally in tallies.items()}
