"""The loops that measure an event's windows; ``log_kernels`` says how histories lie."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from udfs.compiled import Floats, Ints, compiled
from udfs.features import aggregates as a
from udfs.features.aggregate_kernels import (
    NO_ROW,
    Event,
    decayed,
    newest,
    of_all,
    of_found,
    of_rows,
    session_start,
    share,
    slope,
    walk,
    window_values,
)
from udfs.features.log_kernels import (
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
    expire,
    index_is_full,
    insert,
    last_at,
    make_room,
    seen_before,
)

BY_TIME, BY_EVENTS, BY_SESSION, BY_FIRST = 0, 1, 2, 3


class Plan(NamedTuple):
    """What to measure.

    Attributes:
        kinds: Kind of each span and its number of events or gap in ms, (spans, 2); spans by first
            events have no others beside them.
        columns: Span, aggregate, value (-1 counts events), decayed sum (-1 none), place among the
            features, and a point's other coordinate of each column, (columns, 6); those that share
            a walk follow each other, short spans first.
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


@compiled
def _bounds(
    log: Log, region: Ints, event: Event, plan: Plan, layout: Layout, begins: Ints, ends: Ints
) -> None:
    """Where each span begins (exclusive) and ends; those by events end where their time says."""
    for span in range(len(plan.kinds)):
        kind = plan.kinds[span, 0]
        if span > 0 and kind != BY_FIRST and event.highs[span] == event.highs[span - 1]:
            end = ends[span - 1]
        else:
            end = last_at(log.ints, region[START], region[END], event.highs[span])
        begin = last_at(log.ints, region[START], end, event.lows[span])
        if kind == BY_FIRST:
            end = min(end, begin + plan.kinds[span, 1])
        elif kind == BY_SESSION:
            gap_ms = plan.kinds[span, 1]
            begin = session_start(log, region[SHIFT], begin, end, gap_ms, layout.gap)
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
    event: Event,
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
        span, aggregate, value, decay, target, partner = plan.columns[n]
        begin, end = begins[span], ends[span]
        if plan.kinds[span, 0] == BY_EVENTS:
            count = plan.kinds[span, 1]
            begin = max(begin, newest(log, shift, begin, end, value, count, layout) - 1)
        if decay >= 0:
            weight, total = decayed(log, shift, begin, end, decay, layout, event.highs[span])
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
                walk(log, shift, begin, merged_begin, value, layout, found)
                merged_begin = begin
            features[target] = of_found(aggregate, found, own[value])
        elif _is_of_all(aggregate):
            if value != values_of or span != values_span:
                values = window_values(log, begin, end, value, layout)
                values_of, values_span = value, span
            is_category = categories[value] != 0
            features[target] = of_all(values, aggregate, plan.numbers[n], is_category)
        elif aggregate == a.SLOPE:
            features[target] = slope(log, begin, end, value, layout)
        elif aggregate == a.OWN_SHARE:
            features[target] = share(log, begin, end, value, own[value], layout)
        else:
            features[target] = of_rows(
                log,
                shift,
                begin,
                end,
                aggregate,
                plan.numbers[n],
                value,
                partner,
                event,
                own,
                layout,
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
        event = Event(rows.times[n], row, lows[n], highs[n])
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
def observe_first(
    log: Log,
    rows: Rows,
    layout: Layout,
    plan: Plan,
    categories: Ints,
    lows: Ints,
    highs: Ints,
    features: Floats,
    changed: Ints,
    n: int,
) -> int:
    """Keep each history's oldest entries, and measure events against them.

    As ``observe``; of a history at most as many entries are kept as the largest span has. Nothing
    expires: a late event takes the place of the newest one kept.

    Args:
        log: The histories.
        rows: The events.
        layout: Of the entries.
        plan: What to measure; all spans are by first events.
        categories: Whether each value stands for a text, (values,).
        lows: The time each span begins after, (n, spans).
        highs: The time each span ends with, (n, spans).
        features: Written, (n, columns).
        changed: Written: 1 where the event is kept, (n,).
        n: Where to begin.

    Returns:
        How many are done: if not all, the array is full; grow it and go on.
    """
    spans = len(plan.kinds)
    begins, ends, found = np.empty(spans, np.int64), np.empty(spans, np.int64), np.empty(6)
    most = plan.kinds[:, 1].max()
    while n < len(rows.slots):
        region = log.regions[rows.slots[n]]
        is_full = region[END] - region[START] >= most
        changed[n] = 0
        if not is_full or rows.times[n] < log.ints[region[END], TIME]:
            if not make_room(log, rows.slots[n]):
                return n
            insert(log, region, rows, n, layout)
            if is_full:
                region[END] -= 1
            changed[n] = 1
        event = Event(rows.times[n], NO_ROW, lows[n], highs[n])
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
        event = Event(times[n], NO_ROW, lows[n], highs[n])
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
