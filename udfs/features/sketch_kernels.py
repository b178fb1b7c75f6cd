"""The loops of sketches: how many different values older events had, and their quantiles.

A mark is two words. The first says what it belongs to and in which pane it lies, so that marks in
the order of their first word are those of one sketch side by side, the oldest first::

    word    0                                      1
            sketch and kind << 48 | pane + 2**46   EXACT    the value's hash, where it came last
                                                   RANKS    register << 8 | rank
                                                   BUCKETS  bucket << 32 | count

Different values are marked where they came last: a window has those marked in it. Above
``EXACT_VALUES`` of them it is a sliding HyperLogLog (Chabchoub and Hébrail, 2010): of each register
the ranks that none after them exceeds, which are all that a window's maximum can come from. The
estimate is Ertl's, "New cardinality estimation algorithms for HyperLogLog sketches" (2017),
algorithm 6, which has no bias at any size. Quantiles are DDSketches (Masson, Rim and Lee, 2019),
one a pane: buckets whose bounds grow by (1 + error) / (1 - error).

None of it depends on the order of events, nor on when they were merged.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from udfs.compiled import Floats, Ints, compiled
from udfs.features import aggregates as a

EXACT, RANKS, BUCKETS = 0, 1, 2
KINDS = 3
EXACT_VALUES = 512
"""So many different values of merged events are counted exactly."""
SMALLEST = 1e-9
"""Values nearer to 0 than this are 0 in a quantile of merged events."""

_TAG, _BIAS = 48, 1 << 46
_PANE_MASK = (1 << _TAG) - 1
_COUNT_MASK = (1 << 32) - 1
_NAN_BITS = 0x7FF8000000000001  # no value: its hash is 0, which marks a free place in a table
_MIX_1, _MIX_2 = 0xBF58476D1CE4E5B9 - (1 << 64), 0x94D049BB133111EB - (1 << 64)
_UNLIMITED = 0.5 / np.log(2.0)


class Sketches(NamedTuple):
    """Which sketches merged events have.

    Attributes:
        values: Series and aggregate of each, (sketches, 2).
        bits: Of a register's number; 2**bits registers.
        log_gamma: Logarithm of the ratio of a bucket's bounds.
        offset: Bucket of 1.0; that of 0 is 0, those of negative values are negative.
    """

    values: Ints
    bits: int
    log_gamma: float
    offset: int


@compiled
def hash_of(bits: int) -> int:
    """A value's bits, mixed: no two values have one hash (SplitMix64's finaliser)."""
    x = bits ^ _NAN_BITS
    x = (x ^ ((x >> 30) & 0x3FFFFFFFF)) * _MIX_1
    x = (x ^ ((x >> 27) & 0x1FFFFFFFFF)) * _MIX_2
    return x ^ ((x >> 31) & 0x1FFFFFFFF)


@compiled
def rank_of(mixed: int, bits: int) -> int:
    """Register << 8 | rank: the place of the first bit set after those of the register."""
    register = (mixed >> (64 - bits)) & ((1 << bits) - 1)
    rank, probe = 1, mixed << bits
    while probe >= 0 and rank <= 64 - bits:
        rank += 1
        probe <<= 1
    return register << 8 | rank


@compiled
def bucket_of(x: float, sketches: Sketches) -> int:
    """The bucket of a value."""
    if abs(x) < SMALLEST:
        return 0
    bucket = int(np.ceil(np.log(abs(x)) / sketches.log_gamma)) + sketches.offset
    return bucket if x > 0.0 else -bucket


@compiled
def _value_of(bucket: int, sketches: Sketches) -> float:
    """The value that is nearest, relatively, to both bounds of a bucket."""
    if bucket == 0:
        return 0.0
    power = np.exp((abs(bucket) - sketches.offset) * sketches.log_gamma)
    x: float = 2.0 * power / (np.exp(sketches.log_gamma) + 1.0)
    return x if bucket > 0 else -x


@compiled
def first_word(sketch: int, kind: int, pane: int) -> int:
    """The first word of a mark."""
    return (sketch * KINDS + kind) << _TAG | (pane + _BIAS)


@compiled
def pane_of(words: Ints) -> Ints:
    """The panes of marks, from their first words."""
    panes: Ints = (words & _PANE_MASK) - _BIAS
    return panes


@compiled
def after(rows: Ints, limit: int) -> int:
    """The first row whose first word is above a limit, of rows that it puts in order."""
    low, high = 0, len(rows)
    while low < high:
        middle = (low + high) >> 1
        if rows[middle, 0] <= limit:
            low = middle + 1
        else:
            high = middle
    return low


@compiled
def between(marks: Ints, low: int, high: int) -> tuple[int, int]:
    """The marks whose first word is from ``low`` to ``high``: where they begin and end."""
    return after(marks, low - 1), after(marks, high)


@compiled
def marks_of(marks: Ints, sketch: int) -> tuple[int, int]:
    """Where the marks of a sketch begin and end."""
    return between(
        marks, first_word(sketch, EXACT, -_BIAS), first_word(sketch + 1, EXACT, -_BIAS) - 1
    )


@compiled
def _place(table: Ints, mixed: int) -> int:
    """Where a hash is or would be in a table."""
    place = mixed & (len(table) - 1)
    while table[place] != 0 and table[place] != mixed:
        place = (place + 1) & (len(table) - 1)
    return place


@compiled
def _table(n: int) -> Ints:
    size = 4
    while size < 2 * n:
        size *= 2
    return np.zeros(size, np.int64)


@compiled
def _last_of_each(panes: Ints, hashes: Ints) -> tuple[Ints, Ints]:
    """The newest pane of each hash, ascending."""
    order = np.argsort(panes, kind="mergesort")
    table, kept = _table(len(panes)), np.empty(len(panes), np.int64)
    n = 0
    for at in order[::-1]:
        place = _place(table, hashes[at])
        if table[place] == 0:
            table[place] = hashes[at]
            kept[n] = at
            n += 1
    newest = kept[:n][::-1]
    return panes[newest], hashes[newest]


@compiled
def _staircase(panes: Ints, ranks: Ints, bits: int) -> tuple[Ints, Ints]:
    """Of each register the ranks that no later one exceeds or equals, ascending by pane."""
    order = np.argsort(panes << 8 | (ranks & 255), kind="mergesort")
    best, kept = np.zeros(1 << bits, np.int64), np.empty(len(panes), np.int64)
    n = 0
    for at in order[::-1]:
        if ranks[at] & 255 > best[ranks[at] >> 8]:
            best[ranks[at] >> 8] = ranks[at] & 255
            kept[n] = at
            n += 1
    highest = kept[:n][::-1]
    return panes[highest], ranks[highest]


@compiled
def _put(marks: Ints, at: int, sketch: int, kind: int, panes: Ints, words: Ints) -> int:
    for n in range(len(panes)):
        marks[at + n, 0], marks[at + n, 1] = first_word(sketch, kind, panes[n]), words[n]
    return at + len(panes)


@compiled
def _merge_distinct(
    old: Ints, sketch: int, panes: Ints, values: Floats, sketches: Sketches, marks: Ints, at: int
) -> int:
    """Write the marks of a count of different values; returns where they end."""
    begin, middle = between(
        old, first_word(sketch, EXACT, -_BIAS), first_word(sketch, RANKS, -_BIAS) - 1
    )
    _, end = between(old, 0, first_word(sketch, BUCKETS, -_BIAS) - 1)
    known, n = end - begin, len(values)
    all_panes, words = np.empty(known + n, np.int64), np.empty(known + n, np.int64)
    all_panes[:known] = pane_of(old[begin:end, 0])
    words[:known] = old[begin:end, 1]
    all_panes[known:] = panes
    bits = values.view(np.int64)
    for row in range(n):
        words[known + row] = hash_of(bits[row])
    is_exact = middle == end
    if is_exact:
        all_panes, words = _last_of_each(all_panes, words)
        if len(words) <= EXACT_VALUES:
            return _put(marks, at, sketch, EXACT, all_panes, words)
        known = 0
    for row in range(known, len(words)):
        words[row] = rank_of(words[row], sketches.bits)
    all_panes, words = _staircase(all_panes, words, sketches.bits)
    return _put(marks, at, sketch, RANKS, all_panes, words)


@compiled
def _merge_quantiles(
    old: Ints, sketch: int, panes: Ints, values: Floats, sketches: Sketches, marks: Ints, at: int
) -> int:
    """Write the marks of quantiles; returns where they end."""
    begin, end = between(
        old, first_word(sketch, BUCKETS, -_BIAS), first_word(sketch, KINDS, -_BIAS) - 1
    )
    known, n = end - begin, len(values)
    merged = np.empty((known + n, 2), np.int64)
    merged[:known] = old[begin:end]
    for row in range(n):
        merged[known + row, 0] = first_word(sketch, BUCKETS, panes[row])
        merged[known + row, 1] = bucket_of(values[row], sketches) << 32 | 1
    keys = pane_of(merged[:, 0]) << 17 | ((merged[:, 1] >> 32) + 65_536)
    for row in np.argsort(keys, kind="mergesort"):
        word, packed = merged[row]
        if at > 0 and marks[at - 1, 0] == word and marks[at - 1, 1] >> 32 == packed >> 32:
            marks[at - 1, 1] += packed & _COUNT_MASK
        else:
            marks[at, 0], marks[at, 1] = word, packed
            at += 1
    return at


@compiled
def merge(
    old: Ints, sketch: int, panes: Ints, values: Floats, sketches: Sketches, marks: Ints, at: int
) -> int:
    """Write the marks of a sketch with further values.

    Args:
        old: The marks of all sketches, (n, 2).
        sketch: Which.
        panes: Of each value.
        values: None of them NaN, none -0.0.
        sketches: All of them.
        marks: Written, long enough.
        at: Where to begin.

    Returns:
        Where they end.
    """
    if sketches.values[sketch, 1] == a.DISTINCT:
        return _merge_distinct(old, sketch, panes, values, sketches, marks, at)
    return _merge_quantiles(old, sketch, panes, values, sketches, marks, at)


@compiled
def _sigma(x: float) -> float:
    if x == 1.0:
        return np.inf
    y, z, before = 1.0, x, -1.0
    while z != before:
        x *= x
        before = z
        z += x * y
        y += y
    return z


@compiled
def _tau(x: float) -> float:
    if x == 0.0 or x == 1.0:
        return 0.0
    y, z, before = 1.0, 1.0 - x, -1.0
    while z != before:
        x = np.sqrt(x)
        before = z
        y *= 0.5
        z -= (1.0 - x) ** 2 * y
    return z / 3.0


@compiled
def _estimate(registers: Ints, bits: int) -> float:
    """How many different values the registers have seen (Ertl's algorithm 6)."""
    m, most = float(1 << bits), 64 - bits
    counts = np.zeros(most + 2)
    for rank in registers:
        counts[rank] += 1.0
    z = m * _tau(1.0 - counts[most + 1] / m)
    for rank in range(most, 0, -1):
        z = 0.5 * (z + counts[rank])
    z += m * _sigma(counts[0] / m)
    estimate: float = _UNLIMITED * m * m / z
    return estimate


@compiled
def distinct(
    marks: Ints, sketch: int, low: int, high: int, values: Floats, sketches: Sketches
) -> float:
    """Different values of the panes from ``low`` to ``high``, and of single events."""
    bits = values.view(np.int64)
    begin, end = between(
        marks, first_word(sketch, RANKS, -_BIAS), first_word(sketch, BUCKETS, -_BIAS) - 1
    )
    if begin < end:
        begin, end = between(marks, first_word(sketch, RANKS, low), first_word(sketch, RANKS, high))
        registers = np.zeros(1 << sketches.bits, np.int64)
        for n in range(begin, end):
            word = marks[n, 1]
            registers[word >> 8] = max(registers[word >> 8], word & 255)
        for n in range(len(bits)):
            word = rank_of(hash_of(bits[n]), sketches.bits)
            registers[word >> 8] = max(registers[word >> 8], word & 255)
        return _estimate(registers, sketches.bits)
    begin, end = between(marks, first_word(sketch, EXACT, low), first_word(sketch, EXACT, high))
    count, table = end - begin, _table(len(bits))
    for n in range(len(bits)):
        mixed = hash_of(bits[n])
        place = _place(table, mixed)
        count += table[place] == 0
        table[place] = mixed
    for n in range(begin, end):
        count -= table[_place(table, marks[n, 1])] != 0
    return float(count)


@compiled
def quantile(
    marks: Ints,
    sketch: int,
    low: int,
    high: int,
    values: Floats,
    sketches: Sketches,
    percentage: float,
) -> float:
    """A quantile of the panes from ``low`` to ``high`` and of single events; NaN if no pane is."""
    begin, end = between(marks, first_word(sketch, BUCKETS, low), first_word(sketch, BUCKETS, high))
    if begin == end:
        return np.nan
    buckets, counts = marks[begin:end, 1] >> 32, marks[begin:end, 1] & _COUNT_MASK
    smallest = largest = buckets[0]
    for bucket in buckets:
        smallest, largest = min(smallest, bucket), max(largest, bucket)
    own = np.empty(len(values), np.int64)
    for n in range(len(values)):
        own[n] = bucket_of(values[n], sketches)
        smallest, largest = min(smallest, own[n]), max(largest, own[n])
    total, number = np.zeros(largest - smallest + 1, np.int64), len(own)
    for n in range(len(buckets)):
        total[buckets[n] - smallest] += counts[n]
        number += counts[n]
    for bucket in own:
        total[bucket - smallest] += 1
    place: float = percentage / 100.0 * (number - 1)
    rank, at, seen = int(place), 0, total[0]
    while seen <= rank:
        at += 1
        seen += total[at]
    x = _value_of(at + smallest, sketches)
    if seen > rank + 1 or place == rank:
        return x
    while seen <= rank + 1:
        at += 1
        seen += total[at]
    return x + (place - rank) * (_value_of(at + smallest, sketches) - x)
