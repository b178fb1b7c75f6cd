"""The loops that keep readings until their window closes, and aggregate those that close.

Readings lie as entries of ``udfs.features.log_kernels``, without blocks: a window is looked through
once, when it closes, so a reading costs O(1) for each aggregate. A key's windows close by its own
newest reading: a window ``[start, end)`` when that is at or past ``end`` + lateness. What closed
windows there are follows from the newest entry, but for those that the clock closed.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from udfs.compiled import Floats, Ints, compiled, compiled_without_gil
from udfs.features import aggregates as a
from udfs.features.aggregate_kernels import of_all, of_found, slope, window_values
from udfs.features.log_kernels import (
    END,
    LATE,
    NEVER_MS,
    NEW,
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
    seen_before,
)

BY_TIME, BY_IDLENESS, BY_END, BY_CLOCK = 0, 1, 2, 3


class Rules(NamedTuple):
    """When windows close, and what is made of them.

    Attributes:
        every_ms: Their length.
        lateness_ms: How far a key's newest reading is past the end of a window that closes.
        dedupe_ms: An id seen within this time before is a repeat; 0 looks for none.
        horizon_ms: Readings this much older than their key's newest are forgotten.
        idle_ms: As if readings arrived at their own times: a longer gap closes what is open; 0
            leaves that to the clock.
        columns: Value and aggregate of each column, those of a value one after the other,
            (columns, 2).
        targets: The place of each column among the window's, (columns,).
        numbers: The ``k`` or ``q`` of each column's aggregate, (columns,).
        carried: The first of the values that a window has as its newest reading has them.
    """

    every_ms: int
    lateness_ms: int
    dedupe_ms: int
    horizon_ms: int
    idle_ms: int
    columns: Ints
    targets: Ints
    numbers: Floats
    carried: int


class Closed(NamedTuple):
    """Room for windows that have closed; ``used`` says how many there are.

    Attributes:
        slots: Whose, (m,).
        ends: When they end, epoch ms, (m,).
        readings: How many readings they have, (m,).
        reasons: What closed them, (m,).
        rows: The reading that came when they closed, -1 if none did, (m,).
        values: The aggregates, (m, columns).
        newest: What each one's newest reading carries, (m, carried values).
        used: (1,).
    """

    slots: Ints
    ends: Ints
    readings: Ints
    reasons: Ints
    rows: Ints
    values: Floats
    newest: Floats
    used: Ints


@compiled
def closed_until(log: Log, slot: int, rules: Rules, idle_until: Ints) -> int:
    """The end of a key's last window that is closed."""
    region = log.regions[slot]
    by_time: int = (log.ints[region[END], TIME] - rules.lateness_ms) // rules.every_ms
    return max(by_time * rules.every_ms, int(idle_until[slot]))


@compiled
def _spread(values: Floats, total: float, rest: float) -> float:
    """The sum of squared deviations, from a sum as a pair of doubles."""
    mean, mean_rest = mean_of(total, rest, float(len(values)))
    spread = 0.0
    for x in values:
        apart = (x - mean) - mean_rest
        spread += apart * apart
    return spread


@compiled
def _aggregate(
    log: Log, begin: int, end: int, layout: Layout, rules: Rules, found: Floats, made: Floats
) -> None:
    """The columns of the window of the entries after ``begin`` up to ``end``."""
    seen = -1
    values = found[:0]
    for n in range(len(rules.columns)):
        value, aggregate = rules.columns[n]
        if value != seen:
            seen = value
            values = window_values(log, begin, end, value, layout)
            total, rest = 0.0, 0.0
            found[4], found[5] = np.inf, -np.inf
            for x in values:
                total, rest = add_pairs(total, rest, x, 0.0)
                found[4], found[5] = min(found[4], x), max(found[5], x)
            found[0], found[1], found[2] = float(len(values)), total, rest
            found[3] = _spread(values, total, rest) if len(values) else 0.0
        if aggregate == a.FIRST or aggregate == a.LAST:
            at = 0 if aggregate == a.FIRST else len(values) - 1
            result = values[at] if len(values) else np.nan
        elif aggregate == a.SLOPE:
            result = slope(log, begin, end, value, layout)
        elif aggregate <= a.ZSCORE:
            result = of_found(aggregate, found, np.nan)
        else:
            result = of_all(values, aggregate, rules.numbers[n], False)
        made[rules.targets[n]] = result


@compiled
def _close(
    log: Log,
    slot: int,
    since_ms: int,
    until_ms: int,
    reason: int,
    by_row: int,
    layout: Layout,
    rules: Rules,
    found: Floats,
    closed: Closed,
) -> None:
    """Close the windows that hold readings and lie from ``since_ms`` to ``until_ms``."""
    region = log.regions[slot]
    last = region[END]
    row = last_at(log.ints, region[START], last, since_ms - 1) + 1
    while row <= last and log.ints[row, TIME] < until_ms:
        end_ms = log.ints[row, TIME] // rules.every_ms * rules.every_ms + rules.every_ms
        newest = last_at(log.ints, row, last, end_ms - 1)
        n = closed.used[0]
        closed.slots[n], closed.ends[n], closed.reasons[n] = slot, end_ms, reason
        closed.readings[n], closed.rows[n] = newest - row + 1, by_row
        _aggregate(log, row - 1, newest, layout, rules, found, closed.values[n])
        for at in range(closed.newest.shape[1]):
            closed.newest[n, at] = log.floats[newest, layout.first + rules.carried + at]
        closed.used[0] = n + 1
        row = newest + 1


@compiled
def is_full(closed: Closed, rules: Rules) -> bool:
    """Whether there may be no room for what a reading closes: two times all that can be open."""
    most_open = rules.lateness_ms // rules.every_ms + 2
    return len(closed.slots) - int(closed.used[0]) < 2 * most_open


@compiled
def close_all(
    log: Log,
    slots: Ints,
    untils: Ints,
    reason: int,
    layout: Layout,
    rules: Rules,
    idle_until: Ints,
    closed: Closed,
) -> int:
    """Close windows of some keys, at most up to that of each one's newest reading.

    Args:
        log: The readings.
        slots: Of the keys, (n,).
        untils: Windows that end later stay open, epoch ms, (n,).
        reason: Why.
        layout: Of the readings.
        rules: The windows'.
        idle_until: Written: the end of each key's last window that is closed, (slots,).
        closed: Written.

    Returns:
        How many keys are done: if not all, ``closed`` is full.
    """
    found = np.empty(6)
    for n in range(len(slots)):
        region = log.regions[slots[n]]
        if is_full(closed, rules):
            return n
        newest_ms = log.ints[region[END], TIME]
        if region[END] == region[START] or newest_ms == NEVER_MS:
            continue
        since_ms = closed_until(log, slots[n], rules, idle_until)
        until_ms = newest_ms // rules.every_ms * rules.every_ms + rules.every_ms
        until_ms = min(until_ms, untils[n] // rules.every_ms * rules.every_ms)
        if until_ms > since_ms:
            _close(log, slots[n], since_ms, until_ms, reason, -1, layout, rules, found, closed)
            idle_until[slots[n]] = until_ms
    return len(slots)


@compiled
def roll(
    log: Log,
    rows: Rows,
    layout: Layout,
    rules: Rules,
    idle_until: Ints,
    verdicts: Ints,
    closed: Closed,
    n: int,
) -> int:
    """Take readings, one after the other, and close the windows that they end.

    Args:
        log: The readings that are kept.
        rows: Those that come.
        layout: Of the entries.
        rules: The windows'.
        idle_until: The end of each key's last window that the clock closed, (slots,); written if
            ``rules`` have an idle time.
        verdicts: Written: ``NEW``, ``DUPLICATE``, ``CONFLICT``, or ``LATE`` for a reading of a
            window that is closed, which is not taken; (n,).
        closed: Written.
        n: Where to begin.

    Returns:
        How many are done: if not all, the array, the index or ``closed`` is full; grow and go on.
    """
    found = np.empty(6)
    while n < len(rows.slots):
        slot = rows.slots[n]
        region = log.regions[slot]
        if is_full(closed, rules):
            return n
        if rules.dedupe_ms > 0 and index_is_full(log, slot):
            return n
        time_ms = rows.times[n]
        newest_ms = log.ints[region[END], TIME]
        before_ms = closed_until(log, slot, rules, idle_until)
        if rules.idle_ms > 0 and newest_ms != NEVER_MS and time_ms - newest_ms > rules.idle_ms:
            until_ms = newest_ms // rules.every_ms * rules.every_ms + rules.every_ms
            if until_ms > before_ms:
                _close(log, slot, before_ms, until_ms, BY_IDLENESS, n, layout, rules, found, closed)
                idle_until[slot] = before_ms = until_ms
        if rules.dedupe_ms > 0:
            verdicts[n] = seen_before(log, rows, n, rules.dedupe_ms)
            if verdicts[n] != NEW:
                n += 1
                continue
        if time_ms < before_ms:
            verdicts[n] = LATE
            n += 1
            continue
        if not make_room(log, slot):
            return n
        verdicts[n] = NEW
        insert(log, region, rows, n, layout)
        after_ms = closed_until(log, slot, rules, idle_until)
        if after_ms > before_ms:
            _close(log, slot, before_ms, after_ms, BY_TIME, n, layout, rules, found, closed)
        expire(log, region, log.ints[region[END], TIME] - rules.horizon_ms)
        n += 1
    return n


@compiled_without_gil
def roll_apart(
    log: Log,
    rows: Rows,
    layout: Layout,
    rules: Rules,
    idle_until: Ints,
    verdicts: Ints,
    closed: Closed,
    n: int,
) -> int:
    """As ``roll``, for threads side by side."""
    return roll(log, rows, layout, rules, idle_until, verdicts, closed, n)


@compiled_without_gil
def close_all_apart(
    log: Log,
    slots: Ints,
    untils: Ints,
    reason: int,
    layout: Layout,
    rules: Rules,
    idle_until: Ints,
    closed: Closed,
) -> int:
    """As ``close_all``, for threads side by side."""
    return close_all(log, slots, untils, reason, layout, rules, idle_until, closed)
