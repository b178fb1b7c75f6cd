"""The loops that measure an event's windows; ``udfs.log_kernels`` says how histories lie."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from udfs import aggregates as a
from udfs.compiled import Floats, Ints, compiled
from udfs.log_kernels import (
    COUNTS,
    END,
    INDEXED,
    LATE,
    NEW,
    SHIFT,
    START,
    TIME,
    Layout,
    Log,
    Rows,
    add_pairs,
    expire,
    index_is_full,
    insert,
    last_at,
    make_room,
    mean_of,
    merged_spread,
    seen_before,
)

BY_TIME, BY_EVENTS, BY_SESSION = 0, 1, 2
EARTH_RADIUS_KM = 6_371.0088  # as udfs.expressions
NO_ROW = -1


class Plan(NamedTuple):
    """What to measure.

    Attributes:
        kinds: Kind of each span and its number of events or gap in ms, (spans, 2).
        columns: Span, aggregate, value (-1 counts events), decayed sum (-1 none) and place among
            the features of each column, (columns, 5); those that share a walk follow each other,
            short spans first.
        numbers: The ``k`` or ``q`` of each column's aggregate, (columns,).
        horizon_ms: Entries this much older than their history's newest are forgotten.
        lateness_ms: An event this much older than its history's newest is late.
        dedupe_ms: An id seen within this time before is a repeat; 0 looks for none.
    """

    kinds: Ints
    columns: Ints
    numbers: Floats
    horizon_ms: int
    lateness_ms: int
    dedupe_ms: int


class _Event(NamedTuple):
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
def _session_start(log: Log, shift: int, begin: int, end: int, gap_ms: int, word: int) -> int:
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
def _newest(
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
def _walk(
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
def _decayed(
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
def _values(log: Log, begin: int, end: int, value: int, layout: Layout) -> Floats:
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
def _of_all(values: Floats, aggregate: int, number: float, is_category: bool) -> float:
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
def _share(log: Log, begin: int, end: int, value: int, own: float, layout: Layout) -> float:
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
def _of_rows(
    log: Log,
    shift: int,
    begin: int,
    end: int,
    aggregate: int,
    number: float,
    value: int,
    event: _Event,
    own: Floats,
    layout: Layout,
) -> float:
    """The aggregates of single entries: first, last, and those that look at the one before."""
    floats, at = log.floats, layout.first + value
    if aggregate == a.LAST:
        row = _newest(log, shift, begin, end, value, 1, layout)
        return floats[row, at] if row > begin else np.nan
    if aggregate == a.FIRST or aggregate == a.SINCE_FIRST:
        count = _count(log, shift, begin, end, value, layout)
        if count == 0:
            return np.nan
        row = _newest(log, shift, begin, end, value, count, layout)
        if aggregate == a.FIRST:
            return floats[row, at]
        return (event.time_ms - log.ints[row, TIME]) / 1_000.0
    if event.row != NO_ROW and end >= event.row:
        end = max(begin, event.row - 1)
    row = _newest(log, shift, begin, end, value, int(max(1.0, number)), layout)
    if row == begin:
        return np.nan
    if aggregate == a.LAG:
        return floats[row, at]
    if aggregate == a.CHANGE:
        return own[value] - floats[row, at]
    seconds = (event.time_ms - log.ints[row, TIME]) / 1_000.0
    if aggregate == a.SINCE_PREVIOUS:
        return seconds
    distance = _distance_km(own[value], own[value + 1], floats[row, at], floats[row, at + 1])
    if aggregate == a.SPEED_KMH:
        return distance / seconds * 3_600.0 if seconds > 0.0 else np.nan
    return distance


@compiled
def _of_found(aggregate: int, found: Floats, own: float) -> float:
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


@compiled
def _bounds(
    log: Log, region: Ints, event: _Event, plan: Plan, layout: Layout, begins: Ints, ends: Ints
) -> None:
    """Where each span begins (exclusive) and ends; those by events end where their time says."""
    for span in range(len(plan.kinds)):
        if span > 0 and event.highs[span] == event.highs[span - 1]:
            end = ends[span - 1]
        else:
            end = last_at(log.ints, region[START], region[END], event.highs[span])
        begin = last_at(log.ints, region[START], end, event.lows[span])
        if plan.kinds[span, 0] == BY_SESSION:
            gap_ms = plan.kinds[span, 1]
            begin = _session_start(log, region[SHIFT], begin, end, gap_ms, layout.gap)
        begins[span], ends[span] = begin, end


@compiled
def _is_merged(aggregate: int) -> bool:
    return aggregate <= a.ZSCORE


@compiled
def _is_of_all(aggregate: int) -> bool:
    return aggregate in (a.DISTINCT, a.ENTROPY, a.TOP, a.QUANTILE)


@compiled
def _measure(
    log: Log,
    region: Ints,
    event: _Event,
    own: Floats,
    layout: Layout,
    plan: Plan,
    categories: Ints,
    begins: Ints,
    ends: Ints,
    found: Floats,
    features: Floats,
) -> None:
    """All features of one event.

    ``begins``, ``ends`` and ``found`` are scratch memory; ``features`` is written.
    """
    _bounds(log, region, event, plan, layout, begins, ends)
    shift = region[SHIFT]
    merged_value, merged_begin, merged_end = -2, 0, 0
    values_of, values_span = -2, -1
    values = found[:0]
    for n in range(len(plan.columns)):
        span, aggregate, value, decay, target = plan.columns[n]
        begin, end = begins[span], ends[span]
        if plan.kinds[span, 0] == BY_EVENTS:
            count = plan.kinds[span, 1]
            begin = max(begin, _newest(log, shift, begin, end, value, count, layout) - 1)
        if decay >= 0:
            weight, total = _decayed(log, shift, begin, end, decay, layout, event.highs[span])
            if aggregate == a.MEAN:
                total = total / weight if weight > 0.0 else np.nan
            features[target] = weight if aggregate == a.COUNT else total
        elif value < 0 and aggregate == a.COUNT:
            features[target] = end - begin
        elif _is_merged(aggregate):
            if value != merged_value or end != merged_end or begin > merged_begin:
                found[:4] = 0.0
                found[4], found[5] = np.inf, -np.inf
                merged_value, merged_begin, merged_end = value, end, end
            if begin < merged_begin:
                _walk(log, shift, begin, merged_begin, value, layout, found)
                merged_begin = begin
            features[target] = _of_found(aggregate, found, own[value])
        elif _is_of_all(aggregate):
            if value != values_of or span != values_span:
                values = _values(log, begin, end, value, layout)
                values_of, values_span = value, span
            is_category = categories[value] != 0
            features[target] = _of_all(values, aggregate, plan.numbers[n], is_category)
        elif aggregate == a.OWN_SHARE:
            features[target] = _share(log, begin, end, value, own[value], layout)
        else:
            features[target] = _of_rows(
                log, shift, begin, end, aggregate, plan.numbers[n], value, event, own, layout
            )


@compiled
def observe(
    log: Log,
    rows: Rows,
    layout: Layout,
    plan: Plan,
    categories: Ints,
    lows: Ints,
    highs: Ints,
    features: Floats,
    verdicts: Ints,
    n: int,
) -> int:
    """Add events to their histories, one after the other, and measure each one's windows.

    Args:
        log: The histories.
        rows: The events.
        layout: Of the entries.
        plan: What to measure.
        categories: Whether each value stands for a text, (values,).
        lows: The time each span begins after, (n, spans).
        highs: The time each span ends with, (n, spans).
        features: Written, (n, columns).
        verdicts: Written: ``NEW``, ``LATE``, ``DUPLICATE`` or ``CONFLICT``, (n,).
        n: Where to begin.

    Returns:
        How many are done: if not all, the array or the index is full; grow it and go on.
    """
    spans = len(plan.kinds)
    begins, ends, found = np.empty(spans, np.int64), np.empty(spans, np.int64), np.empty(6)
    while n < len(rows.slots):
        region = log.regions[rows.slots[n]]
        if plan.dedupe_ms > 0:
            if index_is_full(log, rows.slots[n]):
                return n
            verdicts[n] = seen_before(log, rows, n, plan.dedupe_ms)
            if verdicts[n] != NEW:
                n += 1
                continue
        if not make_room(log, rows.slots[n]):
            return n
        newest_ms = log.ints[region[END], TIME]
        if rows.times[n] < newest_ms - plan.lateness_ms:
            verdicts[n] = LATE
        row = insert(log, region, rows, n, layout)
        event = _Event(rows.times[n], row, lows[n], highs[n])
        _measure(
            log,
            region,
            event,
            rows.values[n],
            layout,
            plan,
            categories,
            begins,
            ends,
            found,
            features[n],
        )
        expire(log, region, log.ints[region[END], TIME] - plan.horizon_ms)
        n += 1
    return n


@compiled
def measure(
    log: Log,
    slots: Ints,
    times: Ints,
    layout: Layout,
    plan: Plan,
    categories: Ints,
    lows: Ints,
    highs: Ints,
    features: Floats,
) -> None:
    """Measure the windows of events that are not entries themselves; arguments as ``observe``."""
    spans, own = len(plan.kinds), np.full(len(layout.blocks), np.nan)
    begins, ends, found = np.empty(spans, np.int64), np.empty(spans, np.int64), np.empty(6)
    for n in range(len(slots)):
        region = log.regions[slots[n]]
        event = _Event(times[n], NO_ROW, lows[n], highs[n])
        _measure(
            log, region, event, own, layout, plan, categories, begins, ends, found, features[n]
        )
        expire(log, region, times[n] - plan.horizon_ms)


@compiled
def add(log: Log, rows: Rows, layout: Layout, plan: Plan, n: int) -> int:
    """Add events without measuring; arguments and result as ``observe``."""
    while n < len(rows.slots):
        slot = rows.slots[n]
        if log.regions[slot, INDEXED] and index_is_full(log, slot):
            return n
        if not make_room(log, slot):
            return n
        region = log.regions[rows.slots[n]]
        insert(log, region, rows, n, layout)
        expire(log, region, log.ints[region[END], TIME] - plan.horizon_ms)
        n += 1
    return n
