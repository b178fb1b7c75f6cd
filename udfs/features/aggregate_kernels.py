"""The loops that aggregate a part of a history; ``log_kernels`` says how histories lie."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from udfs.compiled import Floats, Ints, compiled
from udfs.features import aggregates as a
from udfs.features.log_kernels import (
    COUNTS,
    TIME,
    Layout,
    Log,
    add_pairs,
    mean_of,
    merged_spread,
)

EARTH_RADIUS_KM = 6_371.0088
"""Mean radius of the Earth (IUGG, R1)."""

NO_ROW = -1


class Event(NamedTuple):
    """The event that looks.

    Attributes:
        time_ms: Its time.
        row: Its own row, or ``NO_ROW`` if it is no entry.
        lows: Each span begins after this time, (spans,).
        highs: And ends with this one, (spans,).
    """

    time_ms: int
    row: int
    lows: Ints
    highs: Ints


@compiled
def session_start(log: Log, shift: int, begin: int, end: int, gap_ms: int, word: int) -> int:
    """The row before the session that ends with ``end``."""
    row = end
    while row > begin:
        low = (row + shift) & -(row + shift)
        if row - low >= begin and log.ints[row, word] <= gap_ms:
            row -= low
        elif log.ints[row, TIME] - log.ints[row - 1, TIME] > gap_ms:
            return row - 1
        else:
            row -= 1
    return begin


@compiled
def newest(
    log: Log, shift: int, begin: int, end: int, value: int, count: int, layout: Layout
) -> int:
    """Row of the count-th newest entry that has a value; ``begin`` where there are fewer."""
    word = layout.blocks[value, COUNTS] if value >= 0 else -1
    if word < 0:
        return max(begin, end - count + 1)
    row = end
    while row > begin:
        low = (row + shift) & -(row + shift)
        inside = log.ints[row, word]
        if row - low >= begin and inside < count:
            row -= low
            count -= inside
            continue
        if log.floats[row, layout.first + value] == log.floats[row, layout.first + value]:
            count -= 1
            if count == 0:
                return row
        row -= 1
    return begin


@compiled
def _count(log: Log, shift: int, begin: int, end: int, value: int, layout: Layout) -> int:
    """How many entries have a value."""
    word = layout.blocks[value, COUNTS] if value >= 0 else -1
    if word < 0:
        return end - begin
    count, row = 0, end
    while row > begin:
        low = (row + shift) & -(row + shift)
        if row - low >= begin:
            count += log.ints[row, word]
            row -= low
        else:
            x = log.floats[row, layout.first + value]
            count += x == x
            row -= 1
    return count


@compiled
def walk(
    log: Log, shift: int, begin: int, end: int, value: int, layout: Layout, found: Floats
) -> None:
    """Add the entries after ``begin`` up to ``end`` to ``found``.

    Which is their count, sum (two words), squared deviations, smallest and largest.
    """
    floats = log.floats
    words = layout.blocks[value]
    count, sums, spreads, lows, highs = words
    if count < 0 and sums < 0 and lows < 0 and highs < 0:
        found[0] += end - begin
        return
    row = end
    while row > begin:
        low = (row + shift) & -(row + shift)
        x = floats[row, layout.first + value]
        total, rest, spread, smallest, largest = x, 0.0, 0.0, x, x
        n = 1.0 if x == x else 0.0
        if row - low >= begin:
            n = float(log.ints[row, count]) if count >= 0 else float(low)
            if sums >= 0:
                total, rest = floats[row, sums], floats[row, sums + 1]
            if spreads >= 0:
                spread = floats[row, spreads]
            if lows >= 0:
                smallest = floats[row, lows]
            if highs >= 0:
                largest = floats[row, highs]
            row -= low
        else:
            row -= 1
        if n == 0.0:
            continue
        if spreads >= 0:
            found[3] = merged_spread(found[3], found[0], found[1], found[2], spread, n, total, rest)
        found[0] += n
        if sums >= 0:
            found[1], found[2] = add_pairs(found[1], found[2], total, rest)
        found[4] = min(found[4], smallest)
        found[5] = max(found[5], largest)


@compiled
def decayed(
    log: Log, shift: int, begin: int, end: int, n: int, layout: Layout, now_ms: int
) -> tuple[float, float]:
    """Decayed weight and sum of the entries after ``begin`` up to ``end``."""
    value, word = layout.decays[n]
    half_life = layout.half_lives[n]
    total, weight, row = 0.0, 0.0, end
    while row > begin:
        factor = 0.5 ** (float(now_ms - log.ints[row, TIME]) / half_life)
        low = (row + shift) & -(row + shift)
        if row - low >= begin:
            total += factor * log.floats[row, word]
            weight += factor * log.floats[row, word + 1]
            row -= low
            continue
        x = log.floats[row, layout.first + value] if value >= 0 else 1.0
        if x == x:
            total += factor * x
            weight += factor
        row -= 1
    return weight, total


@compiled
def window_values(log: Log, begin: int, end: int, value: int, layout: Layout) -> Floats:
    """The values of a window, oldest first."""
    values = np.empty(end - begin)
    n = 0
    for row in range(begin + 1, end + 1):
        x = log.floats[row, layout.first + value]
        if x == x:
            values[n] = x + 0.0  # -0.0 is 0.0
            n += 1
    return values[:n]


@compiled
def _counts(values: Floats) -> Floats:
    """How often each different value comes, by a hash table."""
    size = 4
    while size < 2 * len(values):
        size *= 2
    keys, counts = np.empty(size), np.zeros(size)
    bits = values.view(np.int64)
    for n in range(len(values)):
        # A round number's low bits are all 0: fold the high ones in, and take the product's middle.
        folded = bits[n] ^ (bits[n] >> 32)
        place = ((folded * -7_046_029_254_386_353_131) >> 32) & (size - 1)
        while counts[place] != 0.0 and keys[place] != values[n]:
            place = (place + 1) & (size - 1)
        keys[place] = values[n]
        counts[place] += 1.0
    return counts[counts > 0.0]


@compiled
def of_all(values: Floats, aggregate: int, number: float, is_category: bool) -> float:
    """The aggregates that look at every value."""
    n = len(values)
    if aggregate == a.QUANTILE:
        if n == 0:
            return np.nan
        place = number / 100.0 * (n - 1)
        low = min(int(place), n - 1)
        parted = np.partition(values, low)
        if low + 1 == n:
            return parted[low]
        return parted[low] + (place - low) * (parted[low + 1 :].min() - parted[low])
    if aggregate == a.TOP and not is_category:
        kth = n - int(number)
        return np.partition(values, kth)[kth] if kth >= 0 else np.nan
    counts = _counts(values)
    if aggregate == a.DISTINCT:
        return float(len(counts))
    if aggregate == a.TOP:
        kth = len(counts) - int(number)
        return np.partition(counts, kth)[kth] if kth >= 0 else 0.0
    if n == 0:
        return np.nan
    entropy = 0.0
    for count in counts:
        entropy -= count / n * np.log(count / n)
    return max(0.0, entropy)


@compiled
def slope(log: Log, begin: int, end: int, value: int, layout: Layout) -> float:
    """The rise per second of the least-squares line through a window's values.

    Times count from the window's first entry, so that they are exact; nothing is subtracted but
    means.
    """
    start_ms = log.ints[begin + 1, TIME] if end > begin else 0
    n, passed_ms, total, rest = 0, 0, 0.0, 0.0
    for row in range(begin + 1, end + 1):
        x = log.floats[row, layout.first + value]
        if x == x:
            n += 1
            passed_ms += log.ints[row, TIME] - start_ms
            total, rest = add_pairs(total, rest, x, 0.0)
    if n < 2:
        return np.nan
    mean_ms = passed_ms / n
    mean, rest = mean_of(total, rest, float(n))
    spread, together = 0.0, 0.0
    for row in range(begin + 1, end + 1):
        x = log.floats[row, layout.first + value]
        if x == x:
            apart = (log.ints[row, TIME] - start_ms) - mean_ms
            spread += apart * apart
            together += apart * ((x - mean) - rest)
    rise = 1_000.0 * together / spread if spread > 0.0 else np.nan
    return rise if abs(rise) < np.inf else np.nan


@compiled
def share(log: Log, begin: int, end: int, value: int, own: float, layout: Layout) -> float:
    """The part of a window's values that are the event's own."""
    n, same = 0, 0
    for row in range(begin + 1, end + 1):
        x = log.floats[row, layout.first + value]
        if x == x:
            n += 1
            same += x == own
    return same / n if n and own == own else np.nan


@compiled
def _distance_km(lat1: float, lon1: float, lat2: float, lon2: float) -> float:
    lat1, lon1, lat2, lon2 = np.radians(lat1), np.radians(lon1), np.radians(lat2), np.radians(lon2)
    square = (
        np.sin((lat2 - lat1) / 2) ** 2
        + np.cos(lat1) * np.cos(lat2) * np.sin((lon2 - lon1) / 2) ** 2
    )
    return 2 * EARTH_RADIUS_KM * np.arcsin(np.sqrt(min(square, 1.0)))


@compiled
def of_rows(
    log: Log,
    shift: int,
    begin: int,
    end: int,
    aggregate: int,
    number: float,
    value: int,
    partner: int,
    event: Event,
    own: Floats,
    layout: Layout,
) -> float:
    """The aggregates of single entries: first, last, and those that look at the one before."""
    floats, at = log.floats, layout.first + value
    if aggregate == a.LAST:
        row = newest(log, shift, begin, end, value, 1, layout)
        return floats[row, at] if row > begin else np.nan
    if aggregate == a.FIRST or aggregate == a.SINCE_FIRST:
        count = _count(log, shift, begin, end, value, layout)
        if count == 0:
            return np.nan
        row = newest(log, shift, begin, end, value, count, layout)
        if aggregate == a.FIRST:
            return floats[row, at]
        return (event.time_ms - log.ints[row, TIME]) / 1_000.0
    if event.row != NO_ROW and end >= event.row:
        end = max(begin, event.row - 1)
    row = newest(log, shift, begin, end, value, int(max(1.0, number)), layout)
    if row == begin:
        return np.nan
    if aggregate == a.LAG:
        return floats[row, at]
    if aggregate == a.CHANGE:
        return own[value] - floats[row, at]
    seconds = (event.time_ms - log.ints[row, TIME]) / 1_000.0
    if aggregate == a.SINCE_PREVIOUS:
        return seconds
    other = floats[row, layout.first + partner]
    distance = _distance_km(own[value], own[partner], floats[row, at], other)
    if aggregate == a.SPEED_KMH:
        return distance / seconds * 3_600.0 if seconds > 0.0 else np.nan
    return distance


@compiled
def of_found(aggregate: int, found: Floats, own: float) -> float:
    """The aggregates of merged blocks."""
    n = found[0]
    if aggregate == a.COUNT:
        return n
    if aggregate == a.SUM:
        return found[1] + found[2]
    if n == 0.0:
        return np.nan
    if aggregate == a.MIN:
        return found[4]
    if aggregate == a.MAX:
        return found[5]
    mean, rest = mean_of(found[1], found[2], n)
    if aggregate == a.MEAN:
        return mean + rest
    if aggregate == a.RATIO_TO_MEAN:
        ratio = own / (mean + rest) if mean != 0.0 else np.nan
        return ratio if abs(ratio) < np.inf else np.nan
    variance = found[3] / (n - 1.0) if n > 1.0 and found[3] < np.inf else np.nan
    if aggregate == a.VARIANCE:
        return variance
    deviation = np.sqrt(variance)
    if aggregate == a.STD:
        return deviation
    return ((own - mean) - rest) / deviation if deviation > 0.0 else np.nan
