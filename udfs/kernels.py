"""The inner loops, compiled to machine code by Numba.

A loop over rows in Python costs some microseconds a row and a NumPy formulation some microseconds
a call, whatever the batch's size; compiled, a row costs less than one.

Entries lie in one 2-D array of 8-byte words, a row an entry, seen as integers and as floats::

    word       0         1        2       3           4           5 ...
    ints     time_ms   id hash   check
    floats                              sum 0 high  sum 0 low   sum 1 high ...

``regions[slot] = (begin, start, end, limit)`` says where a history lies: rows ``begin`` to
``limit - 1`` are its own, ``start + 1`` to ``end`` its entries in time order, and row ``start``
holds the sums of all that came before them.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import njit

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Bytes = npt.NDArray[np.uint8]

TIME, ID, CHECK, SUMS = 0, 1, 2, 3
BEGIN, START, END, LIMIT = 0, 1, 2, 3
NEW, DUPLICATE, CONFLICT = 0, 1, 2
COUNT, SUM, MEAN, RATIO_TO_MEAN = 0, 1, 2, 3
MIN_CAPACITY = 8
SPACE, MINUS, ZERO = 32, 45, 48
LARGEST = 2**63 - 1

# The GIL is kept: a call takes some microseconds, and getting the GIL back from another operator of
# the same TaskManager can take 5 ms.
_compiled = njit(cache=True, error_model="numpy")


@_compiled
def last_at(ints: Ints, first: int, last: int, limit_ms: int) -> int:
    """Row of the last entry at or before a time; ``first`` where every entry is later."""
    low, high = first, last
    while low < high:
        middle = (low + high + 1) >> 1
        if ints[middle, TIME] <= limit_ms:
            low = middle
        else:
            high = middle - 1
    return low


@_compiled
def _find(ints: Ints, region: Ints, entry_id: int, since_ms: int) -> int:
    """Row of an entry of that id later than a time; -1 where there is none."""
    end = region[END]
    for row in range(end, last_at(ints, region[START], end, since_ms), -1):
        if ints[row, ID] == entry_id:
            return row
    return -1


@_compiled
def _copy(ints: Ints, source: int, target: int, count: int) -> None:
    """Copy rows; the ranges may overlap if they move to the front."""
    for n in range(count):
        ints[target + n] = ints[source + n]


@_compiled
def _make_room(ints: Ints, regions: Ints, used: Ints, slot: int) -> bool:
    """Room for one more entry of a history; false if the array is full."""
    region = regions[slot]
    if region[END] + 1 < region[LIMIT]:
        return True
    live = region[END] - region[START] + 1
    begin = region[BEGIN]
    if 2 * live > region[LIMIT] - begin:
        capacity = max(MIN_CAPACITY, 4 * live)
        if used[0] + capacity > len(ints):
            return False
        begin = used[0]
        used[0] += capacity
        region[LIMIT] = begin + capacity
    _copy(ints, region[START], begin, live)
    region[BEGIN] = region[START] = begin
    region[END] = begin + live - 1
    return True


@_compiled
def _two_sum(a: float, b: float) -> tuple[float, float]:
    """The rounded sum and its exact error (Knuth's TwoSum)."""
    total = a + b
    part = total - a
    return total, (a - (total - part)) + (b - part)


@_compiled
def _add_to_sum(floats: Floats, row: int, word: int, before: int, value: float) -> None:
    """Sum at ``row`` = sum at ``before`` + value."""
    total, error = _two_sum(floats[before, word], value)
    floats[row, word + 1] = floats[before, word + 1] + error
    floats[row, word] = total


@_compiled
def _insert(
    ints: Ints,
    floats: Floats,
    region: Ints,
    time_ms: int,
    values: Floats,
    entry_id: int,
    check: int,
) -> None:
    """Put an entry after those of its time; the sums of later ones grow by its values."""
    at = last_at(ints, region[START], region[END], time_ms) + 1
    region[END] += 1
    for row in range(region[END], at, -1):
        ints[row] = ints[row - 1]
        for n in range(len(values)):
            _add_to_sum(floats, row, SUMS + 2 * n, row, values[n])
    ints[at, TIME], ints[at, ID], ints[at, CHECK] = time_ms, entry_id, check
    for n in range(len(values)):
        _add_to_sum(floats, at, SUMS + 2 * n, at - 1, values[n])


@_compiled
def _remove(ints: Ints, floats: Floats, region: Ints, at: int) -> None:
    """Take an entry out; the sums of later ones shrink by its values."""
    for word in range(SUMS, ints.shape[1], 2):
        high, error = _two_sum(floats[at, word], -floats[at - 1, word])
        low = floats[at, word + 1] - floats[at - 1, word + 1] + error
        for row in range(at + 1, region[END] + 1):
            _add_to_sum(floats, row, word, row, -high)
            floats[row, word + 1] -= low
    _copy(ints, at + 1, at, region[END] - at)
    region[END] -= 1


@_compiled
def _expire(ints: Ints, region: Ints, until_ms: int) -> None:
    """Forget entries at or before a time: the last one becomes the sum before the first."""
    region[START] = last_at(ints, region[START], region[END], until_ms)


@_compiled
def _write_features(
    ints: Ints,
    floats: Floats,
    region: Ints,
    time_ms: int,
    own: Floats,
    spans: Ints,
    plan: Ints,
    features: Floats,
) -> None:
    """The features of one event.

    Args:
        ints: The entries.
        floats: The same memory.
        region: The event's history.
        time_ms: The event's time.
        own: The event's own values.
        spans: Window and delay of each span, ms, (spans, 2).
        plan: Span, aggregate and value of each column, (columns, 3), in the order of the spans.
        features: Written, (columns,).
    """
    current, begin, end = -1, 0, 0
    for column in range(len(plan)):
        span, aggregate, value = plan[column, 0], plan[column, 1], plan[column, 2]
        if span != current:
            current = span
            until_ms = time_ms - spans[span, 1]
            end = last_at(ints, region[START], region[END], until_ms)
            begin = last_at(ints, region[START], end, until_ms - spans[span, 0])
        count = end - begin
        if aggregate == COUNT:
            features[column] = count
            continue
        word = SUMS + 2 * value
        high = floats[end, word] - floats[begin, word]
        total = high + (floats[end, word + 1] - floats[begin, word + 1])
        if aggregate == SUM:
            features[column] = total
            continue
        mean = total / count  # 0 / 0 is NaN: an empty window has no mean
        if aggregate == RATIO_TO_MEAN:
            mean = own[value] / mean if mean != 0.0 else np.nan
        features[column] = mean


@_compiled
def observe(
    ints: Ints,
    floats: Floats,
    regions: Ints,
    used: Ints,
    slots: Ints,
    times: Ints,
    values: Floats,
    ids: Ints,
    checks: Ints,
    dedupe_within_ms: int,
    horizon_ms: int,
    spans: Ints,
    plan: Ints,
    features: Floats,
    verdicts: Ints,
    row: int,
) -> int:
    """Add events to their histories, one after the other, and measure each one's windows.

    Args:
        ints: The entries.
        floats: The same memory.
        regions: Where each history lies.
        used: How many rows are given out, (1,).
        slots: The history of each event, (n,).
        times: Event times, epoch ms, (n,).
        values: The aggregated values, (n, values).
        ids: Id hashes, (n,).
        checks: Content hashes, (n,).
        dedupe_within_ms: An id seen within this time before is a repeat; 0 looks for none.
        horizon_ms: Entries this much older than their history's newest are forgotten.
        spans: See ``_write_features``.
        plan: See ``_write_features``.
        features: Written, (n, columns).
        verdicts: Written: ``NEW``, ``DUPLICATE`` or ``CONFLICT``, (n,).
        row: Where to begin.

    Returns:
        n, or the row at which the array was full: grow it and call again from there.
    """
    while row < len(slots):
        region = regions[slots[row]]
        if dedupe_within_ms > 0:
            seen = _find(ints, region, ids[row], times[row] - dedupe_within_ms)
            if seen >= 0:
                verdicts[row] = DUPLICATE if ints[seen, CHECK] == checks[row] else CONFLICT
                row += 1
                continue
        if not _make_room(ints, regions, used, slots[row]):
            return row
        _insert(ints, floats, region, times[row], values[row], ids[row], checks[row])
        _write_features(ints, floats, region, times[row], values[row], spans, plan, features[row])
        _expire(ints, region, ints[region[END], TIME] - horizon_ms)
        row += 1
    return row


@_compiled
def measure(
    ints: Ints,
    floats: Floats,
    regions: Ints,
    slots: Ints,
    times: Ints,
    horizon_ms: int,
    spans: Ints,
    plan: Ints,
    features: Floats,
) -> None:
    """Measure the windows of events that are not entries themselves; arguments as ``observe``."""
    own = np.zeros(0)
    for row in range(len(slots)):
        region = regions[slots[row]]
        _write_features(ints, floats, region, times[row], own, spans, plan, features[row])
        _expire(ints, region, times[row] - horizon_ms)


@_compiled
def learn(
    ints: Ints,
    floats: Floats,
    regions: Ints,
    used: Ints,
    slots: Ints,
    times: Ints,
    values: Floats,
    ids: Ints,
    checks: Ints,
    verdicts: Ints,
    row: int,
) -> int:
    """Add entries, or replace those of the same id; arguments and result as ``observe``.

    A repeat of the same content changes nothing: ``DUPLICATE``. Another content replaces the
    earlier entry: ``CONFLICT``.
    """
    while row < len(slots):
        region = regions[slots[row]]
        seen = _find(ints, region, ids[row], np.iinfo(np.int64).min)
        if seen >= 0 and ints[seen, CHECK] == checks[row]:
            verdicts[row] = DUPLICATE
            row += 1
            continue
        if not _make_room(ints, regions, used, slots[row]):
            return row
        if seen >= 0:
            seen = _find(ints, region, ids[row], np.iinfo(np.int64).min)  # it may have moved
            _remove(ints, floats, region, seen)
            verdicts[row] = CONFLICT
        _insert(ints, floats, region, times[row], values[row], ids[row], checks[row])
        row += 1
    return row


@_compiled
def pack(
    ints: Ints, regions: Ints, slots: Ints, header: int, until: int, ends: Ints, words: Ints
) -> None:
    """Copy histories out, one after the other, a header of two words before each.

    Args:
        ints: The entries.
        regions: Where each history lies.
        slots: The histories, (n,).
        header: The first word before each.
        until: The second.
        ends: Where each one's words end, (n,).
        words: Written.
    """
    at = 0
    for n in range(len(slots)):
        words[at], words[at + 1] = header, until
        at += 2
        for row in range(regions[slots[n], START], regions[slots[n], END] + 1):
            for word in range(ints.shape[1]):
                words[at] = ints[row, word]
                at += 1
        assert at == ends[n]


@_compiled
def compact(old: Ints, new: Ints, regions: Ints, histories: int, used: Ints) -> None:
    """Copy the histories to another array, side by side, each with its capacity."""
    at = 0
    for slot in range(histories):
        begin, start, end, limit = regions[slot]
        live = end - start + 1
        new[at : at + live] = old[start : end + 1]
        regions[slot, BEGIN] = regions[slot, START] = at
        regions[slot, END] = at + live - 1
        at += limit - begin
        regions[slot, LIMIT] = at
    used[0] = at


@_compiled
def _number(text: Bytes, at: int) -> tuple[int, int]:
    """A decimal int64 that a space ends, and where what follows it begins; -1 if it is none."""
    if at < 0 or at >= len(text):
        return 0, -1
    sign, first = (-1, at + 1) if text[at] == MINUS else (1, at)
    at, value = first, 0
    while at < len(text) and ZERO <= text[at] < ZERO + 10:
        digit = text[at] - ZERO
        if value > LARGEST // 10 or (value == LARGEST // 10 and digit > LARGEST % 10):
            return 0, -1
        value = 10 * value + digit
        at += 1
    if at == first or at == len(text) or text[at] != SPACE:
        return 0, -1
    return sign * value, at + 1


@_compiled
def frames(text: Bytes) -> tuple[Ints, int]:
    """Find the records of a joined batch: ``partition offset time_ms length record`` and so on.

    Returns:
        Partition, offset, Kafka time in ms, start and end of each record, int64 (n, 5); and where
        a frame begins that is malformed or cut off, -1 if there is none.
    """
    found = np.empty((len(text) // 8 + 1, 5), np.int64)  # the shortest frame has 8 bytes
    n, begin = 0, 0
    while begin < len(text):
        at = begin
        for column in range(4):
            found[n, column], at = _number(text, at)
        length = found[n, 3]
        # Not at + length > len(text): compiled code takes it that no sum ever wraps.
        if at < 0 or length < 0 or length > len(text) - at:
            return found[:n], begin
        end = at + length
        if end < len(text) and (text[end] != SPACE or end + 1 == len(text)):
            return found[:n], begin
        found[n, 3], found[n, 4] = at, end
        n, begin = n + 1, end + 1
    return found[:n], -1
