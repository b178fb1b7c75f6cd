"""The loops of panes: events that no exact window needs any more, merged by stretches of time.

Pane ``k`` of length ``p`` holds the events of the times from ``k p`` to before ``(k + 1) p``. Which
events are merged, and when, cannot be told from a window that begins with a whole pane. A history
with panes has them beside its entries, in rows ``panes`` to ``panes_limit - 1`` of the same array,
read as one line of words::

    panes  marks  (end of the pane  a summary of each value  of each value, of this pane and all
    after it) for each pane, the oldest first  (two words) for each mark

A summary is ten floats. ``sketch_kernels`` says what a mark is. Whatever panes a window has are the
newest ones, unless its event is late: then it needs no walk, only one summary of the second kind.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from udfs.compiled import Floats, Ints, compiled
from udfs.features.log_kernels import (
    END,
    NEVER_MS,
    PANES,
    PANES_LIMIT,
    START,
    TIME,
    Layout,
    Log,
    add_pairs,
    last_at,
    merged_spread,
)
from udfs.features.sketch_kernels import Sketches, after, merge, pane_of

COUNT, SUM, LOW, SPREAD, SMALLEST, LARGEST, FIRST, FIRST_MS, LAST, LAST_MS = range(10)
SUMMARY = 10
FEW = 64


class Panes(NamedTuple):
    """How older events are merged.

    Attributes:
        size_ms: Length of a pane; 0 if there are none.
        exact_ms: Entries this much older than their history's newest may be merged.
        values: The series of each summary, -1 counts events; (values,).
        sketches: What else they have.
        few: Entries that may wait for being merged, so that merging costs little per event.
    """

    size_ms: int
    exact_ms: int
    values: Ints
    sketches: Sketches
    few: int = FEW


@compiled
def start_summary(summary: Floats) -> None:
    """That of no events."""
    summary[:] = 0.0
    summary[SMALLEST], summary[LARGEST] = np.inf, -np.inf


@compiled
def add_summary(summary: Floats, other: Floats) -> None:
    """Add one to another; among events of one time the other's is the last."""
    if other[COUNT] == 0.0:
        return
    if summary[COUNT] == 0.0:
        summary[:] = other
        return
    summary[SPREAD] = merged_spread(
        summary[SPREAD],
        summary[COUNT],
        summary[SUM],
        summary[LOW],
        other[SPREAD],
        other[COUNT],
        other[SUM],
        other[LOW],
    )
    summary[COUNT] += other[COUNT]
    summary[SUM], summary[LOW] = add_pairs(summary[SUM], summary[LOW], other[SUM], other[LOW])
    summary[SMALLEST] = min(summary[SMALLEST], other[SMALLEST])
    summary[LARGEST] = max(summary[LARGEST], other[LARGEST])
    if other[FIRST_MS] < summary[FIRST_MS]:
        summary[FIRST], summary[FIRST_MS] = other[FIRST], other[FIRST_MS]
    if other[LAST_MS] >= summary[LAST_MS]:
        summary[LAST], summary[LAST_MS] = other[LAST], other[LAST_MS]


@compiled
def _add_event(summary: Floats, x: float, time_ms: int, scratch: Floats) -> None:
    if x != x:
        return
    at = float(time_ms)
    scratch[COUNT], scratch[SUM], scratch[LOW], scratch[SPREAD] = 1.0, x, 0.0, 0.0
    scratch[SMALLEST], scratch[LARGEST] = x, x
    scratch[FIRST], scratch[FIRST_MS], scratch[LAST], scratch[LAST_MS] = x, at, x, at
    add_summary(summary, scratch)


@compiled
def _width(panes: Panes) -> int:
    return 1 + 2 * SUMMARY * len(panes.values)


@compiled
def _views(log: Log, region: Ints, panes: Panes) -> tuple[Ints, Floats, Ints]:
    """A history's panes as integers and as floats, and its marks."""
    begin, limit = region[PANES], region[PANES_LIMIT]
    ints, floats = log.ints[begin:limit].reshape(-1), log.floats[begin:limit].reshape(-1)
    n, marks, width = 0, 0, _width(panes)
    if limit > begin:
        n, marks = ints[0], ints[1]
    end = 2 + n * width if limit > begin else 0
    first = min(2, end)
    return (
        ints[first:end].reshape((n, width)),
        floats[first:end].reshape((n, width)),
        ints[end : end + 2 * marks].reshape((marks, 2)),
    )


@compiled
def window_panes(
    log: Log, region: Ints, low_ms: int, high_ms: int, value: int, panes: Panes, summary: Floats
) -> None:
    """Write the summary of a value over the panes after ``low_ms`` that end by ``high_ms``."""
    ints, floats, _ = _views(log, region, panes)
    n = len(ints)
    first = after(ints, low_ms)
    start_summary(summary)
    if first == n:
        return
    at = 1 + SUMMARY * value
    if ints[n - 1, TIME] <= high_ms:
        at += SUMMARY * len(panes.values)
        summary[:] = floats[first, at : at + SUMMARY]
        return
    while first < n and ints[first, TIME] <= high_ms:
        add_summary(summary, floats[first, at : at + SUMMARY])
        first += 1


@compiled
def window_marks(log: Log, region: Ints, panes: Panes) -> Ints:
    """A history's marks, (n, 2)."""
    return _views(log, region, panes)[2]


@compiled
def _sum_up(floats: Floats, panes: Panes) -> None:
    """Write what each pane and all after it are together."""
    values = len(panes.values)
    for n in range(len(floats) - 1, -1, -1):
        for value in range(values):
            own = 1 + SUMMARY * value
            both = own + SUMMARY * values
            floats[n, both : both + SUMMARY] = floats[n, own : own + SUMMARY]
            if n + 1 < len(floats):
                add_summary(floats[n, both : both + SUMMARY], floats[n + 1, both : both + SUMMARY])


@compiled
def _merged_panes(
    log: Log, region: Ints, end: int, forget_ms: int, layout: Layout, panes: Panes
) -> Ints:
    """The panes that end after ``forget_ms``, with the entries up to row ``end``; no sums yet."""
    old, _, _ = _views(log, region, panes)
    begin = region[START] + 1
    merged = np.zeros((len(old) + end + 1 - begin, _width(panes)), np.int64)
    floats = merged.view(np.float64)
    scratch = np.empty(SUMMARY)
    known, row, n = after(old, forget_ms), begin, 0
    while known < len(old) or row <= end:
        time_ms = -NEVER_MS
        if row <= end:
            time_ms = (log.ints[row, TIME] // panes.size_ms + 1) * panes.size_ms - 1
        if known < len(old) and old[known, TIME] <= time_ms:
            time_ms = old[known, TIME]
            merged[n] = old[known]
            known += 1
        else:
            merged[n, TIME] = time_ms
            for value in range(len(panes.values)):
                start_summary(floats[n, 1 + SUMMARY * value : 1 + SUMMARY * (value + 1)])
        while row <= end and log.ints[row, TIME] <= time_ms:
            for value in range(len(panes.values)):
                series = panes.values[value]
                x = log.floats[row, layout.first + series] if series >= 0 else 1.0
                own = floats[n, 1 + SUMMARY * value : 1 + SUMMARY * (value + 1)]
                _add_event(own, x, log.ints[row, TIME], scratch)
            row += 1
        n += time_ms > forget_ms
    return merged[:n]


@compiled
def _merged_marks(
    log: Log, region: Ints, end: int, forget_ms: int, layout: Layout, panes: Panes
) -> Ints:
    _, _, marks = _views(log, region, panes)
    sketches, oldest = panes.sketches, (forget_ms + 1) // panes.size_ms
    old = marks[pane_of(marks[:, 0]) >= oldest]
    begin = region[START] + 1
    at = int(0)  # noqa: RUF046, UP018 (for a literal Numba would compile what takes it once more)
    marks = np.empty((len(old) + len(sketches.values) * (end + 1 - begin), 2), np.int64)
    values, numbers = np.empty(end + 1 - begin), np.empty(end + 1 - begin, np.int64)
    for sketch in range(len(sketches.values)):
        n = 0
        for row in range(begin, end + 1):
            x = log.floats[row, layout.first + sketches.values[sketch, 0]]
            pane = log.ints[row, TIME] // panes.size_ms
            if x == x and pane >= oldest:
                values[n], numbers[n] = x + 0.0, pane  # -0.0 is 0.0
                n += 1
        at = merge(old, sketch, numbers[:n], values[:n], sketches, marks, at)
    return marks[:at]


@compiled
def _mergeable(log: Log, region: Ints, panes: Panes) -> int:
    """The row of the last entry that may be merged."""
    newest_ms = log.ints[region[END], TIME]
    until_ms = (newest_ms - panes.exact_ms + 1) // panes.size_ms * panes.size_ms
    return last_at(log.ints, region[START], region[END], until_ms - 1)


@compiled
def is_due(log: Log, slot: int, panes: Panes) -> bool:
    """Whether a history has so many older entries that they are to be merged."""
    region = log.regions[slot]
    if panes.size_ms == 0 or region[END] - region[START] <= panes.few:
        return False
    waiting = _mergeable(log, region, panes) - region[START]
    if waiting <= panes.few:
        return False
    ints, _, marks = _views(log, region, panes)
    return bool(waiting > panes.few + len(ints) // 8 + len(marks) // 16)


@compiled
def settle(log: Log, slot: int, layout: Layout, panes: Panes, horizon_ms: int) -> bool:
    """Merge a history's older entries; false if the array is full.

    ``log.used[2]`` then says how many rows were needed.
    """
    region = log.regions[slot]
    end = _mergeable(log, region, panes)
    oldest_ms = log.ints[region[END], TIME] - horizon_ms
    forget_ms = oldest_ms // panes.size_ms * panes.size_ms - 1
    merged = _merged_panes(log, region, end, forget_ms, layout, panes)
    marks = _merged_marks(log, region, end, forget_ms, layout, panes)
    if not put(log, region, merged, marks, panes):
        return False
    region[START] = end
    return True


@compiled
def put(log: Log, region: Ints, merged: Ints, marks: Ints, panes: Panes) -> bool:
    """Store a history's panes and marks, and sum the panes up; false if the array is full."""
    words = log.ints.shape[1]
    rows = (2 + merged.size + marks.size + words - 1) // words
    if rows > region[PANES_LIMIT] - region[PANES]:
        rows += rows // 4
        if log.used[0] + rows > len(log.ints):
            log.used[2] = rows
            return False
        region[PANES] = log.used[0]
        log.used[0] += rows
        region[PANES_LIMIT] = log.used[0]
    flat = log.ints[region[PANES] : region[PANES_LIMIT]].reshape(-1)
    flat[0], flat[1] = len(merged), len(marks)
    flat[2 : 2 + merged.size] = merged.reshape(-1)
    flat[2 + merged.size : 2 + merged.size + marks.size] = marks.reshape(-1)
    _, floats, _ = _views(log, region, panes)
    _sum_up(floats, panes)
    return True


@compiled
def packed_words(log: Log, slots: Ints, panes: Panes) -> Ints:
    """How many words ``pack`` writes of each history."""
    words = np.empty(len(slots), np.int64)
    for n in range(len(slots)):
        ints, _, marks = _views(log, log.regions[slots[n]], panes)
        words[n] = 2 + len(ints) * (1 + SUMMARY * len(panes.values)) + marks.size
    return words


@compiled
def pack(log: Log, slots: Ints, panes: Panes, words: Ints) -> None:
    """Copy panes out: how many, how many marks, the panes without sums, the marks."""
    at, kept = 0, 1 + SUMMARY * len(panes.values)
    for n in range(len(slots)):
        ints, _, marks = _views(log, log.regions[slots[n]], panes)
        words[at], words[at + 1] = len(ints), len(marks)
        at += 2
        for row in range(len(ints)):
            words[at : at + kept] = ints[row, :kept]
            at += kept
        words[at : at + marks.size] = marks.reshape(-1)
        at += marks.size
