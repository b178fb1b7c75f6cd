"""Which items a request ranks: co-visited, near, bought before, popular and fresh ones."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntFlag

import numpy as np
import numpy.typing as npt

from udfs.ranking import kernels
from udfs.ranking.arrays import DAY_MS, Flags, Floats, Rows, largest
from udfs.ranking.counters import ItemCounters
from udfs.ranking.index import ItemIndex
from udfs.ranking.views import UserView

__all__ = ["CandidateOptions", "Candidates", "Source", "candidates", "reason"]


class Source(IntFlag):
    """Why an item is a candidate; an item may have several reasons."""

    COVISIT = kernels.COVISIT
    SESSION = kernels.SESSION
    NEIGHBOUR = kernels.NEIGHBOUR
    REPEAT = kernels.REPEAT
    POPULAR = kernels.POPULAR
    FRESH = kernels.FRESH


_KNOWN = (Source.COVISIT, Source.SESSION, Source.NEIGHBOUR, Source.REPEAT)


@dataclass(frozen=True, slots=True)
class CandidateOptions:
    """How many candidates come from where.

    Attributes:
        count: At most so many in all, 1 to the number of items.
        popular: Taken from the most bought ones whoever asks; their order fills up, too.
        fresh: Taken from items first sold in the last ``fresh_days``, most bought first.
        fresh_days: Age of a fresh item, in days.
        filter_seen: Whether items of the history are left out.
    """

    count: int = 200
    popular: int = 60
    fresh: int = 10
    fresh_days: float = 14.0
    filter_seen: bool = False


@dataclass(frozen=True, slots=True)
class Candidates:
    """Items to rank, in no order that means anything.

    Attributes:
        rows: int32 (C,), ascending, each once.
        sources: Bits of ``Source``, uint8 (C,), at least one each.
    """

    rows: Rows
    sources: npt.NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.rows)


def candidates(
    index: ItemIndex,
    counters: ItemCounters,
    view: UserView,
    options: CandidateOptions,
    off_sale: Flags | None = None,
) -> Candidates:
    """Choose what a request ranks.

    Popular and fresh ones have their places; the sources that know the user share the rest evenly,
    and popular ones fill what they leave, all of it for a user without history.

    Args:
        index: The version's items.
        counters: Of the same index.
        view: The user.
        options: How many, and whether those of the history may come.
        off_sale: What may not be shown besides ``index.on_sale``, bool (I,).

    Returns:
        ``options.count`` items, or all that may be shown if there are fewer.
    """
    allowed = index.on_sale if off_sale is None else index.on_sale & ~off_sale
    if options.filter_seen:
        allowed = allowed.copy()
        allowed[view.rows] = False
    popularity = np.ascontiguousarray(counters.sums[:, 1])
    since_ms = view.time_ms - round(options.fresh_days * DAY_MS)
    marks = kernels.choose(
        allowed,
        popularity,
        counters.first_ms >= since_ms,
        _known(index, view, options),
        (options.count, options.popular, options.fresh),
    )
    return _cut(marks, options.count, np.where(allowed, popularity, -1.0))


def _known(index: ItemIndex, view: UserView, options: CandidateOptions) -> Floats:
    """Scores of all items by what the user's history leads to, float64 (4, I); (0, I) without."""
    if not len(view.rows):
        return np.empty((0, len(index)))
    scores = np.zeros((len(_KNOWN), len(index)))
    scores[0], scores[1], scores[2] = view.by_users, view.by_baskets, view.near
    if not options.filter_seen:
        scores[3, view.rows] = view.weights * view.counts
    return scores


def _cut(marks: npt.NDArray[np.uint8], count: int, popularity: Floats) -> Candidates:
    """At most so many, those with most reasons first."""
    rows = np.flatnonzero(marks)
    if len(rows) > count:
        reasons = np.unpackbits(marks[rows][:, None], axis=1).sum(axis=1)
        share = popularity[rows] / (popularity.max() + 1.0)  # below 1: the reasons come first
        rows = np.sort(rows[largest(reasons + share, count)])
    return Candidates(rows.astype(np.int32), marks[rows])


_REASONS = {
    Source.SESSION: "bought with your last items",
    Source.COVISIT: "bought by users like you",
    Source.NEIGHBOUR: "near your taste",
    Source.REPEAT: "bought before",
    Source.FRESH: "new",
    Source.POPULAR: "popular",
}


def _reason(sources: int) -> str:
    return next((text for source, text in _REASONS.items() if sources & source), "")


_REASON_OF = tuple(_reason(sources) for sources in range(1 << len(Source)))


def reason(sources: int) -> str:
    """The most telling reason of a candidate, for a person to read."""
    return _REASON_OF[sources]
