"""Which items a request ranks: co-visited, near, bought before, popular and fresh ones."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntFlag

import numpy as np
import numpy.typing as npt

from udfs.ranking.arrays import DAY_MS, Flags, Floats, Rows, largest
from udfs.ranking.counters import ItemCounters
from udfs.ranking.index import ItemIndex
from udfs.ranking.views import UserView

__all__ = ["CandidateOptions", "Candidates", "Source", "candidates", "reason"]


_LEAST = float(np.finfo(np.float64).tiny)


class Source(IntFlag):
    """Why an item is a candidate; an item may have several reasons."""

    COVISIT = 1
    SESSION = 2
    NEIGHBOUR = 4
    REPEAT = 8
    POPULAR = 16
    FRESH = 32


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
    marks = np.zeros(len(index), np.uint8)
    popularity = np.where(allowed, counters.sums[:, 1], -1.0)
    _mark(marks, Source.POPULAR, popularity, options.popular, least=0.0)
    _mark(marks, Source.FRESH, _fresh(counters, view, popularity, options), options.fresh)
    if len(view.rows):
        _mark_known(marks, index, view, allowed, options)
    missing = options.count - int(np.count_nonzero(marks))
    _mark_more(marks, Source.POPULAR, popularity, missing, least=0.0)
    return _cut(marks, options.count, popularity)


def _mark_known(
    marks: npt.NDArray[np.uint8],
    index: ItemIndex,
    view: UserView,
    allowed: Flags,
    options: CandidateOptions,
) -> None:
    """Mark what the user's history leads to."""
    bought = np.zeros(len(index))
    if not options.filter_seen:
        bought[view.rows] = view.weights * view.counts
    near = (index.embeddings @ view.vector).astype(np.float64)
    found = (
        (Source.COVISIT, view.by_users),
        (Source.SESSION, view.by_baskets),
        (Source.NEIGHBOUR, near),
        (Source.REPEAT, bought),
    )
    present = [(source, np.where(allowed, scores, 0.0)) for source, scores in found]
    present = [(source, scores) for source, scores in present if scores.any()]
    for place, (source, scores) in enumerate(present):
        left = options.count - int(np.count_nonzero(marks))
        share = -(-left // (len(present) - place))
        _mark_more(marks, source, scores, share)


def _mark(
    marks: npt.NDArray[np.uint8],
    source: Source,
    scores: Floats,
    count: int,
    least: float = _LEAST,
) -> None:
    found = largest(scores, count)
    marks[found[scores[found] >= least]] |= source


def _mark_more(
    marks: npt.NDArray[np.uint8],
    source: Source,
    scores: Floats,
    count: int,
    least: float = _LEAST,
) -> None:
    """Mark the best that are not marked yet, and those marked before them for this reason, too."""
    if count <= 0:
        return
    found = largest(scores, count + int(np.count_nonzero(marks)))
    found = found[scores[found] >= least]
    new = np.flatnonzero(marks[found] == 0)[:count]
    marks[found[: new[-1] + 1 if len(new) else None]] |= source


def _fresh(
    counters: ItemCounters, view: UserView, popularity: Floats, options: CandidateOptions
) -> Floats:
    since_ms = view.time_ms - round(options.fresh_days * DAY_MS)
    return np.where(counters.first_ms >= since_ms, popularity, 0.0)


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


def reason(sources: int) -> str:
    """The most telling reason of a candidate, for a person to read."""
    return next(text for source, text in _REASONS.items() if sources & source)
