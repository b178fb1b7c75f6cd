"""The loops over all items that a request needs, compiled; see ``candidates`` and ``features``.

In NumPy they are some hundred calls a request, most of them over all items, and the products with
the embeddings start BLAS's own threads, which on a busy machine wait for each other.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from udfs.compiled import compiled

COVISIT, SESSION, NEIGHBOUR, REPEAT, POPULAR, FRESH = 1, 2, 4, 8, 16, 32
_KNOWN = (COVISIT, SESSION, NEIGHBOUR, REPEAT)
_LEAST = float(np.finfo(np.float64).tiny)
_DAY_MS = 86_400_000.0
_LONGEST_DAYS = 3_650.0


@compiled
def add_lists(lists: Any, weights: Any, rows: Any, shares: Any, scores: Any) -> None:
    """Add to each item's score what the rows' lists give it; a list ends with -1."""
    for n in range(len(rows)):
        row, share = rows[n], shares[n]
        for k in range(lists.shape[1]):
            item = lists[row, k]
            if item < 0:
                break
            scores[item] += weights[row, k] * share


@compiled
def products(columns: Any, vector: Any) -> Any:
    """Product of each item's embedding with a vector, float32 (I,); embeddings are (D, I)."""
    found = np.zeros(columns.shape[1], np.float32)
    for d in range(len(vector)):
        share, column = vector[d], columns[d]
        for item in range(len(found)):
            found[item] += column[item] * share
    return found


@compiled
def column_sums(sums: Any) -> Any:
    """Sum of each column; NumPy's own goes along the rows, which takes ten times as long."""
    found = np.zeros(sums.shape[1])
    for row in range(len(sums)):
        for h in range(len(found)):
            found[h] += sums[row, h]
    return found


@compiled
def weighted_sum(embeddings: Any, rows: Any, weights: Any) -> Any:
    """Sum of the rows' embeddings, each with its weight, float32 (D,)."""
    found = np.zeros(embeddings.shape[1], np.float32)
    for n in range(len(rows)):
        share = np.float32(weights[n])
        for d in range(len(found)):
            found[d] += share * embeddings[rows[n], d]
    return found


@compiled
def _worse(scores: Any, one: int, other: int) -> Any:
    return scores[one] < scores[other] or (scores[one] == scores[other] and one > other)


@compiled
def _sift(kept: Any, scores: Any, size: int, at: int) -> None:
    """Restore a heap whose root is the worst, where only the one at a place may be too bad."""
    item = kept[at]
    while True:
        child = 2 * at + 1
        if child >= size:
            break
        if child + 1 < size and _worse(scores, kept[child + 1], kept[child]):
            child += 1
        if not _worse(scores, kept[child], item):
            break
        kept[at] = kept[child]
        at = child
    kept[at] = item


@compiled
def best(scores: Any, allowed: Any, least: float, count: int) -> Any:
    """The largest of at least ``least``, the largest first, of equal ones the first; (n,)."""
    kept = np.empty(max(0, min(count, len(scores))), np.int64)
    size = 0
    for item in range(len(scores)):
        if not len(kept) or not allowed[item] or scores[item] < least:
            continue
        if size < len(kept):
            kept[size] = item
            size += 1
            if size == len(kept):
                for at in range(size // 2 - 1, -1, -1):
                    _sift(kept, scores, size, at)
        elif scores[item] > scores[kept[0]]:
            kept[0] = item
            _sift(kept, scores, size, 0)
    if size < len(kept):
        for at in range(size // 2 - 1, -1, -1):
            _sift(kept, scores, size, at)
    for end in range(size - 1, 0, -1):
        kept[0], kept[end] = kept[end], kept[0]
        _sift(kept, scores, end, 0)
    return kept[:size]


@compiled
def _mark(marks: Any, bit: int, found: Any) -> None:
    for item in found:
        marks[item] |= bit


@compiled
def _mark_more(marks: Any, bit: int, found: Any, count: int) -> None:
    """Mark the first that are not marked yet, and those that stand before them."""
    new, last = 0, len(found) - 1
    for place in range(len(found)):
        if new < count and marks[found[place]] == 0:
            new, last = new + 1, place
    _mark(marks, bit, found[: last + 1])


@compiled
def _any(scores: Any, allowed: Any) -> Any:
    found = False
    for item in range(len(scores)):
        if scores[item] != 0 and allowed[item]:
            found = True
            break
    return found


@compiled
def choose(
    allowed: Any,
    popularity: Any,
    is_fresh: Any,
    known: Any,
    sizes: tuple[int, int, int],
) -> Any:
    """Mark candidates with bits of ``Source``, uint8 (I,).

    Args:
        allowed: What may be shown, bool (I,).
        popularity: float64 (I,), none below 0.
        is_fresh: bool (I,).
        known: Scores of the sources that know the user, in the order of their bits, float64
            (4, I); without rows for a user without history.
        sizes: How many in all, popular and fresh ones.
    """
    count, popular, fresh = sizes
    marks = np.zeros(len(allowed), np.uint8)
    _mark(marks, POPULAR, best(popularity, allowed, 0.0, popular))
    _mark(marks, FRESH, best(popularity, allowed & is_fresh, _LEAST, fresh))
    present = 0
    for n in range(len(known)):
        present += _any(known[n], allowed)
    for n in range(len(known)):
        if _any(known[n], allowed):
            marked = np.count_nonzero(marks)
            share = -(-(count - marked) // present)
            present -= 1
            if share > 0:
                found = best(known[n], allowed, _LEAST, share + marked)
                _mark_more(marks, _KNOWN[n], found, share)
    marked = np.count_nonzero(marks)
    if marked < count:
        found = best(popularity, allowed, 0.0, count)
        _mark_more(marks, POPULAR, found, count - marked)
    return marks


@compiled
def fill_item(matrix: Any, rows: Any, time_ms: int, items: Any, counts: Any, shares: Any) -> None:
    """Write the features of items.

    Args:
        matrix: float32 (C, 7), written.
        rows: The items, int32 (C,).
        time_ms: Event time of the request.
        items: First and last purchase, int64 (I,), and logarithms of the prices, float32 (I,).
        counts: float64 (I, H).
        shares: What a count of 1 is of all purchases, with each half-life, float64 (H,).
    """
    first_ms, last_ms, log_prices = items
    size, spans = float(len(counts)), len(shares)
    for n in range(len(rows)):
        row = rows[n]
        newest = oldest = 0.0
        for h in range(spans):
            oldest = np.log(counts[row, h] * shares[h] * size + 1e-3)
            newest = oldest if h == 0 else newest
            matrix[n, h] = oldest
        age = float(time_ms) - float(first_ms[row])
        idle = float(time_ms) - float(last_ms[row])
        matrix[n, spans] = newest - oldest
        matrix[n, spans + 1] = 0.0 if age < 0 else age / _DAY_MS
        matrix[n, spans + 2] = min(idle / _DAY_MS, _LONGEST_DAYS)
        matrix[n, spans + 3] = log_prices[row]


@compiled
def fill_bought(
    matrix: Any, rows: Any, time_ms: int, history: Any, categories: Any, category_weights: Any
) -> None:
    """Write what of a user's history is like each item, or is it.

    Args:
        matrix: float32 (C, 4), written.
        rows: The items, int32 (C,).
        time_ms: Event time of the request.
        history: Rows, times, counts and weights of the history, each (h,).
        categories: Of all items, int32 (I,).
        category_weights: 0, float64 (categories,).
    """
    bought, last_ms, counts, weights = history
    place = np.full(len(categories), -1, np.int64)
    total = 0.0
    for n in range(len(bought)):
        place[bought[n]] = n
        category_weights[categories[bought[n]]] += weights[n]
        total += weights[n]
    for n in range(len(rows)):
        at = place[rows[n]]
        share = category_weights[categories[rows[n]]]
        matrix[n, 0] = share / total if total > 0 else np.nan
        matrix[n, 1] = counts[at] if at >= 0 else 0.0
        matrix[n, 2] = weights[at] if at >= 0 else 0.0
        matrix[n, 3] = (time_ms - last_ms[at]) / _DAY_MS if at >= 0 else np.nan
