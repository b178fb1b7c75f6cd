"""The loops over the histories: entries in time order, and blocks that summarise them.

Entries lie in one 2-D array of 8-byte words, a row an entry, seen as integers and as floats::

    word      0        1        2       3 ...       then
    ints    time_ms  id hash  check
    floats                             values      blocks

``regions[slot] = (begin, start, end, limit, shift, indexed, panes, panes_limit)`` says where a
history lies: rows
``begin`` to ``limit - 1`` are its own, ``start + 1`` to ``end`` its entries in time order. Row
``start`` is the newest that has expired; of it only the time counts. ``indexed`` is 1 where its ids
are in the index, a hash table that tells of an id in a long history that it is new. Its panes, if
it has some, lie in rows of their own: see ``pane_kernels``.

``row + shift`` numbers the entries of a history. With ``low`` the lowest bit set in that number,
the entry's block covers the ``low`` entries that end with it, as in a Fenwick tree::

    number    1    2    3    4    5    6    7    8
    covers    1   1-2   3   1-4   5   5-6   7   1-8

A window of any length is the union of O(log n) blocks and single entries, so whatever can be merged
(sums, extremes, decayed sums) is found in O(log n). Nothing is ever subtracted: what is outside of
a window cannot disturb it. A new entry makes one block in O(1) amortised; a late one shifts those
after it and remakes their blocks, O(k) for k of them.

A sum is a pair of doubles, exact to about 106 bits (Knuth's TwoSum, The Art of Computer Programming
vol. 2, 4.2.2), so that it does not depend on how the blocks fall.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from udfs.compiled import Floats, Ints, compiled

TIME, ID, CHECK = 0, 1, 2
BEGIN, START, END, LIMIT, SHIFT, INDEXED, PANES, PANES_LIMIT = range(8)
REGION = 8
NEW, DUPLICATE, CONFLICT, LATE = 0, 1, 2, 3
MIN_CAPACITY = 8
LONG = 64
"""Entries from which a history's ids are indexed; fewer are looked through faster."""

_ODD = 0x9E3779B97F4A7C15 - (1 << 64)  # 2**64 over the golden ratio: slots far apart in the index
NEVER_MS = -(2**62)
ANY_CONTENT = 0
"""In place of a check: the content is not known, a repeat may have any."""
COUNTS, SUMS, SPREADS, LOWS, HIGHS = 0, 1, 2, 3, 4


class Log(NamedTuple):
    """The memory of a bucket's histories.

    Attributes:
        ints: The entries.
        floats: The same memory.
        regions: Where each history lies.
        used: How many rows are given out, how many places of the index, and how many rows were
            asked for in vain; (3,).
        seen: The index: ids mixed with their slots; 0 is free. Its length is a power of two.
    """

    ints: Ints
    floats: Floats
    regions: Ints
    used: Ints
    seen: Ints


class Layout(NamedTuple):
    """Which word of an entry holds what.

    Attributes:
        first: Of the first value.
        blocks: Of each value's count, sum, sum of squared deviations, smallest and largest in the
            block; (values, 5), -1 where nobody asks. A sum takes two words; deviations need it.
        gap: Of the block's longest time without an event, or -1.
        decays: Value (-1 counts events) and word of each decayed sum; its weight follows in the
            next word; (decays, 2).
        half_lives: Of each decayed sum, ms; (decays,).
    """

    first: int
    blocks: Ints
    gap: int
    decays: Ints
    half_lives: Floats


class Rows(NamedTuple):
    """Entries to be added.

    Attributes:
        slots: The history of each, (n,).
        times: Epoch ms, (n,).
        values: (n, values); NaN is none.
        ids: Hashes of the ids, (n,).
        checks: Hashes of the contents, (n,).
    """

    slots: Ints
    times: Ints
    values: Floats
    ids: Ints
    checks: Ints


@compiled
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


@compiled
def two_sum(a: float, b: float) -> tuple[float, float]:
    """The rounded sum and its exact error (Knuth's TwoSum)."""
    total = a + b
    part = total - a
    return total, (a - (total - part)) + (b - part)


@compiled
def add_pairs(a: float, a_low: float, b: float, b_low: float) -> tuple[float, float]:
    """The sum of two pairs of doubles."""
    total, error = two_sum(a, b)
    error += a_low + b_low
    high = total + error
    return high, error - (high - total)


@compiled
def _product_error(x: float, y: float) -> float:
    """The exact error of the rounded ``x * y`` (Dekker's product)."""
    product = x * y
    part = 134_217_729.0 * x  # 2**27 + 1
    x_high = part - (part - x)
    x_low = x - x_high
    part = 134_217_729.0 * y
    y_high = part - (part - y)
    y_low = y - y_high
    return ((x_high * y_high - product) + x_high * y_low + x_low * y_high) + x_low * y_low


@compiled
def mean_of(total: float, low: float, n: float) -> tuple[float, float]:
    """A pair of doubles divided by a whole number, as a pair."""
    mean = (total + low) / n
    rest = (total - mean * n) + (low - _product_error(mean, n))
    return mean, rest / n if abs(rest) < np.inf else 0.0  # beyond 1e300 the error is no double


@compiled
def merged_spread(
    spread_a: float,
    n_a: float,
    total_a: float,
    low_a: float,
    spread_b: float,
    n_b: float,
    total_b: float,
    low_b: float,
) -> float:
    """The sum of squared deviations of two groups together, from each one's own, count and sum.

    Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample
    variances" (1979): nothing is subtracted but the means, which are pairs of doubles.
    """
    if n_a == 0.0:
        return spread_b
    if n_b == 0.0:
        return spread_a
    mean_a, rest_a = mean_of(total_a, low_a, n_a)
    mean_b, rest_b = mean_of(total_b, low_b, n_b)
    apart, error = two_sum(mean_a, -mean_b)
    apart += error + (rest_a - rest_b)
    return spread_a + spread_b + apart * apart * (n_a * n_b / (n_a + n_b))


@compiled
def _find(ints: Ints, region: Ints, entry_id: int, since_ms: int) -> int:
    """Row of an entry of that id later than a time; -1 where there is none."""
    end = region[END]
    for row in range(end, last_at(ints, region[START], end, since_ms), -1):
        if ints[row, ID] == entry_id:
            return row
    return -1


@compiled
def _place(log: Log, slot: int, entry_id: int) -> tuple[int, int]:
    """Where an id is or would be in the index, and what stands there for it."""
    mixed = entry_id ^ ((slot + 1) * _ODD)
    if mixed == 0:
        mixed = 1
    mask = len(log.seen) - 1
    place = (mixed ^ (mixed >> 32)) & mask
    while log.seen[place] != 0 and log.seen[place] != mixed:
        place = (place + 1) & mask
    return place, mixed


@compiled
def _remember(log: Log, slot: int, entry_id: int) -> None:
    place, mixed = _place(log, slot, entry_id)
    if log.seen[place] == 0:
        log.seen[place] = mixed
        log.used[1] += 1


@compiled
def index_is_full(log: Log, slot: int) -> bool:
    """Whether the index has no room for one more entry of a history."""
    region = log.regions[slot]
    live = region[END] - region[START]
    needed = 1 if region[INDEXED] else live + 1
    # A history stays in the index when it has shrunk: its new ids go there too.
    return (region[INDEXED] or live >= LONG) and 2 * (log.used[1] + needed) > len(log.seen)


@compiled
def _find_id(log: Log, slot: int, entry_id: int, since_ms: int) -> int:
    """``_find``, by way of the index where the history is long."""
    region = log.regions[slot]
    if region[END] - region[START] >= LONG:
        if not region[INDEXED]:
            for row in range(region[START] + 1, region[END] + 1):
                _remember(log, slot, log.ints[row, ID])
            region[INDEXED] = 1
        place, _ = _place(log, slot, entry_id)
        if log.seen[place] == 0:
            return -1
    return _find(log.ints, region, entry_id, since_ms)


@compiled
def make_room(log: Log, slot: int) -> bool:
    """Room for one more entry of a history; false if the array is full."""
    region = log.regions[slot]
    if region[END] + 1 < region[LIMIT]:
        return True
    start = region[START]
    live = region[END] - start + 1
    begin = region[BEGIN]
    if 2 * live > region[LIMIT] - begin:
        capacity = max(MIN_CAPACITY, 4 * live)
        if log.used[0] + capacity > len(log.ints):
            return False
        begin = log.used[0]
        log.used[0] += capacity
        region[LIMIT] = begin + capacity
    for n in range(live):
        log.ints[begin + n] = log.ints[start + n]
    region[BEGIN] = region[START] = begin
    region[END] = begin + live - 1
    region[SHIFT] += start - begin
    return True


@compiled
def _start_block(log: Log, row: int, layout: Layout) -> None:
    """A block of one entry."""
    ints, floats = log.ints, log.floats
    for value in range(len(layout.blocks)):
        words = layout.blocks[value]
        x = floats[row, layout.first + value]
        is_there = x == x
        if words[COUNTS] >= 0:
            ints[row, words[COUNTS]] = 1 if is_there else 0
        word = words[SUMS]
        if word >= 0:
            floats[row, word], floats[row, word + 1] = x if is_there else 0.0, 0.0
        if words[SPREADS] >= 0:
            floats[row, words[SPREADS]] = 0.0
        if words[LOWS] >= 0:
            floats[row, words[LOWS]] = x if is_there else np.inf
        if words[HIGHS] >= 0:
            floats[row, words[HIGHS]] = x if is_there else -np.inf
    if layout.gap >= 0:
        ints[row, layout.gap] = ints[row, TIME] - ints[row - 1, TIME]
    for n in range(len(layout.decays)):
        value, word = layout.decays[n]
        x = floats[row, layout.first + value] if value >= 0 else 1.0
        is_there = x == x
        floats[row, word] = x if is_there else 0.0
        floats[row, word + 1] = 1.0 if is_there else 0.0


@compiled
def _merge_block(log: Log, row: int, child: int, size: int, layout: Layout) -> None:
    """Add an earlier block to that of ``row``; both have ``size`` entries."""
    ints, floats = log.ints, log.floats
    for value in range(len(layout.blocks)):
        words = layout.blocks[value]
        word, count = words[SUMS], words[COUNTS]
        if words[SPREADS] >= 0:
            floats[row, words[SPREADS]] = merged_spread(
                floats[row, words[SPREADS]],
                ints[row, count] if count >= 0 else size,
                floats[row, word],
                floats[row, word + 1],
                floats[child, words[SPREADS]],
                ints[child, count] if count >= 0 else size,
                floats[child, word],
                floats[child, word + 1],
            )
        if count >= 0:
            ints[row, count] += ints[child, count]
        if word >= 0:
            floats[row, word], floats[row, word + 1] = add_pairs(
                floats[row, word],
                floats[row, word + 1],
                floats[child, word],
                floats[child, word + 1],
            )
        word = words[LOWS]
        if word >= 0 and floats[child, word] < floats[row, word]:
            floats[row, word] = floats[child, word]
        word = words[HIGHS]
        if word >= 0 and floats[child, word] > floats[row, word]:
            floats[row, word] = floats[child, word]
    word = layout.gap
    if word >= 0 and ints[child, word] > ints[row, word]:
        ints[row, word] = ints[child, word]
    for n in range(len(layout.decays)):
        word = layout.decays[n, 1]
        age = float(ints[row, TIME] - ints[child, TIME])
        factor = 0.5 ** (age / layout.half_lives[n])
        floats[row, word] += factor * floats[child, word]
        floats[row, word + 1] += factor * floats[child, word + 1]


@compiled
def make_block(log: Log, region: Ints, row: int, layout: Layout) -> None:
    """Summarise the entries that end with ``row``; the blocks before it are made."""
    _start_block(log, row, layout)
    number = row + region[SHIFT]
    low = number & -number
    child, size = row - 1, 1
    while size < low and child > region[START]:
        _merge_block(log, row, child, size, layout)
        child -= size
        size <<= 1


@compiled
def insert(log: Log, region: Ints, rows: Rows, n: int, layout: Layout) -> int:
    """Put an entry after those of its time; returns its row."""
    ints, floats = log.ints, log.floats
    at = last_at(ints, region[START], region[END], rows.times[n]) + 1
    region[END] += 1
    kept = layout.first + len(layout.blocks)
    for row in range(region[END], at, -1):
        for word in range(kept):
            ints[row, word] = ints[row - 1, word]
    ints[at, TIME] = rows.times[n]
    if layout.first > ID:
        ints[at, ID], ints[at, CHECK] = rows.ids[n], rows.checks[n]
        if region[INDEXED]:
            _remember(log, rows.slots[n], rows.ids[n])
    for value in range(len(layout.blocks)):
        floats[at, layout.first + value] = rows.values[n, value]
    for row in range(at, region[END] + 1):
        make_block(log, region, row, layout)
    return at


@compiled
def _remove(log: Log, region: Ints, at: int, layout: Layout) -> None:
    """Take an entry out."""
    kept = layout.first + len(layout.blocks)
    for row in range(at, region[END]):
        for word in range(kept):
            log.ints[row, word] = log.ints[row + 1, word]
    region[END] -= 1
    for row in range(at, region[END] + 1):
        make_block(log, region, row, layout)


@compiled
def expire(log: Log, region: Ints, until_ms: int) -> None:
    """Forget entries at or before a time."""
    region[START] = last_at(log.ints, region[START], region[END], until_ms)


@compiled
def seen_before(log: Log, rows: Rows, n: int, within_ms: int) -> int:
    """``NEW``, or ``DUPLICATE`` or ``CONFLICT`` of an entry within that time before it."""
    row = _find_id(log, rows.slots[n], rows.ids[n], rows.times[n] - within_ms)
    if row < 0:
        return NEW
    check = log.ints[row, CHECK]
    return DUPLICATE if check in (rows.checks[n], ANY_CONTENT) else CONFLICT


@compiled
def learn(log: Log, rows: Rows, layout: Layout, verdicts: Ints, n: int) -> int:
    """Add entries, or replace those of the same id.

    A repeat of the same content changes nothing: ``DUPLICATE``. Another content replaces the
    earlier entry: ``CONFLICT``.

    Args:
        log: The histories.
        rows: The entries.
        layout: Theirs.
        verdicts: Written, (n,).
        n: Where to begin.

    Returns:
        How many are done: if not all, the array or the index is full; grow it and go on.
    """
    while n < len(rows.slots):
        if index_is_full(log, rows.slots[n]):
            return n
        region = log.regions[rows.slots[n]]
        seen = _find_id(log, rows.slots[n], rows.ids[n], NEVER_MS)
        if seen >= 0 and log.ints[seen, CHECK] == rows.checks[n]:
            verdicts[n] = DUPLICATE
            n += 1
            continue
        if not make_room(log, rows.slots[n]):
            return n
        if seen >= 0:
            _remove(log, region, _find(log.ints, region, rows.ids[n], NEVER_MS), layout)
            verdicts[n] = CONFLICT
        insert(log, region, rows, n, layout)
        n += 1
    return n


@compiled
def pack(log: Log, slots: Ints, header: int, until: int, kept: int, words: Ints) -> None:
    """Copy histories out, one after the other.

    Each is the header, ``until``, the time of the newest expired entry, and the first ``kept``
    words of each entry.

    Args:
        log: The histories.
        slots: Which, (n,).
        header: The first word of each.
        until: The second.
        kept: Words of an entry to copy.
        words: Written; long enough.
    """
    at = 0
    for n in range(len(slots)):
        region = log.regions[slots[n]]
        words[at], words[at + 1] = header, until
        words[at + 2] = log.ints[region[START], TIME]
        at += 3
        for row in range(region[START] + 1, region[END] + 1):
            for word in range(kept):
                words[at] = log.ints[row, word]
                at += 1


@compiled
def unpack(log: Log, slot: int, oldest_ms: int, entries: Ints, layout: Layout) -> None:
    """Fill an empty region, long enough, with entries, (n, kept words)."""
    region = log.regions[slot]
    begin = region[BEGIN]
    log.ints[begin, TIME] = oldest_ms
    region[START] = region[END] = begin
    region[SHIFT], region[INDEXED] = -begin, 0
    for n in range(len(entries)):
        row = begin + 1 + n
        for word in range(entries.shape[1]):
            log.ints[row, word] = entries[n, word]
        make_block(log, region, row, layout)
    region[END] = begin + len(entries)


@compiled
def compact(old: Log, new: Log, histories: int) -> None:
    """Copy the histories to another array, side by side, each with its capacity.

    ``new`` has the same regions, which say where they are afterwards.
    """
    at = 0
    for slot in range(histories):
        region = new.regions[slot]
        start, end, capacity = region[START], region[END], region[LIMIT] - region[BEGIN]
        live = end - start + 1
        new.ints[at : at + live] = old.ints[start : end + 1]
        region[BEGIN] = region[START] = at
        region[END] = at + live - 1
        region[SHIFT] += start - at
        at += capacity
        region[LIMIT] = at
        panes = region[PANES_LIMIT] - region[PANES]
        new.ints[at : at + panes] = old.ints[region[PANES] : region[PANES_LIMIT]]
        region[PANES] = at
        at += panes
        region[PANES_LIMIT] = at
    new.used[0] = at
