"""The loops that measure an event's windows; ``log_kernels`` says how histories lie."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from udfs.compiled import Floats, Ints, compiled
from udfs.features import aggregates as a
from udfs.features import pane_kernels as p
from udfs.features.aggregate_kernels import (
    NO_ROW,
    Event,
    count_of,
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
from udfs.features.sketch_kernels import distinct, quantile

BY_TIME, BY_EVENTS, BY_SESSION, BY_FIRST = 0, 1, 2, 3


class Plan(NamedTuple):
    """What to measure.

    Attributes:
        kinds: Kind of each span and its number of events or gap in ms, (spans, 2); spans by first
            events have no others beside them.
        columns: Span, aggregate, value (-1 counts events), decayed sum (-1 none), place among the
            features, a point's other coordinate, and the summary or sketch of panes (-1 none) of
            each column, (columns, 7); those that share a walk follow each other, short spans first.
        numbers: The ``k`` or ``q`` of each column's aggregate, (columns,).
        categories: Whether each value stands for a text, (values,).
        horizon_ms: Entries this much older than their history's newest are forgotten.
        lateness_ms: An event this much older than its history's newest is late.
        dedupe_ms: An id seen within this time before is a repeat; 0 looks for none.
        panes: How older entries are merged.
    """

    kinds: Ints
    columns: Ints
    numbers: Floats
    categories: Ints
    horizon_ms: int
    lateness_ms: int
    dedupe_ms: int
    panes: p.Panes


class Bounds(NamedTuple):
    """When the spans of events begin and end.

    Attributes:
        lows: The time each span begins after, (n, spans).
        highs: The time each span ends with, (n, spans).
    """

    lows: Ints
    highs: Ints


class _Scratch(NamedTuple):
    """Memory that one event's measuring writes and the next one's writes over.

    Attributes:
        begins: The row each span begins after, (spans,).
        ends: The row each span ends with, (spans,).
        found: What a walk over rows found, (6,).
        summary: The same over panes.
    """

    begins: Ints
    ends: Ints
    found: Floats
    summary: Floats


@compiled
def _scratch(plan: Plan) -> _Scratch:
    spans = len(plan.kinds)
    begins, ends = np.empty(spans, np.int64), np.empty(spans, np.int64)
    return _Scratch(begins, ends, np.empty(6), np.empty(p.SUMMARY))


@compiled
def _find_spans(
    log: Log, region: Ints, event: Event, plan: Plan, layout: Layout, scratch: _Scratch
) -> None:
    """Where each span begins (exclusive) and ends; those by events end where their time says."""
    begins, ends = scratch.begins, scratch.ends
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
    scratch: _Scratch,
    features: Floats,
) -> None:
    """Write all features of one event; columns that share a walk go on with it."""
    _find_spans(log, region, event, plan, layout, scratch)
    shift, found, summary = region[SHIFT], scratch.found, scratch.summary
    merged_value, merged_begin, merged_end = -2, 0, 0
    values_of, values_span = -2, -1
    values = found[:0]
    for n in range(len(plan.columns)):
        span, aggregate, value, decay, target, _, place = plan.columns[n]
        begin, end = scratch.begins[span], scratch.ends[span]
        if plan.kinds[span, 0] == BY_EVENTS:
            count = plan.kinds[span, 1]
            begin = max(begin, newest(log, shift, begin, end, value, count, layout) - 1)
        if place >= 0 and not _is_of_all(aggregate):
            low, high = event.lows[span], event.highs[span]
            p.window_panes(log, region, low, high, place, plan.panes, summary)
        if decay >= 0:
            weight, total = decayed(log, shift, begin, end, decay, layout, event.highs[span])
            if aggregate == a.MEAN:
                total = total / weight if weight > 0.0 else np.nan
            features[target] = weight if aggregate == a.COUNT else total
        elif value < 0 and aggregate == a.COUNT:
            features[target] = end - begin
            if place >= 0:
                features[target] += summary[p.COUNT]
        elif _is_merged(aggregate):
            if value != merged_value or end != merged_end or begin > merged_begin:
                found[:4] = 0.0
                found[4], found[5] = np.inf, -np.inf
                merged_value, merged_begin, merged_end = value, end, end
            if begin < merged_begin:
                walk(log, shift, begin, merged_begin, value, layout, found)
                merged_begin = begin
            both = found
            if place >= 0 and summary[p.COUNT] > 0.0:
                both = _with_panes(found, summary)
            features[target] = of_found(aggregate, both, own[value])
        elif _is_of_all(aggregate):
            if value != values_of or span != values_span:
                values = window_values(log, begin, end, value, layout)
                values_of, values_span = value, span
            features[target] = _of_values(log, region, event, values, plan, n)
        elif place >= 0:
            features[target] = _first_or_last(
                log, shift, begin, end, aggregate, value, event, layout, summary
            )
        else:
            features[target] = _of_entries(log, shift, begin, end, event, own, layout, plan, n)


@compiled
def _of_values(
    log: Log, region: Ints, event: Event, values: Floats, plan: Plan, column: int
) -> float:
    """A column that looks at all values of its window."""
    span, aggregate, value, _, _, _, place = plan.columns[column]
    number = plan.numbers[column]
    if place >= 0:
        return _of_panes(log, region, event, span, aggregate, number, place, values, plan.panes)
    return of_all(values, aggregate, number, plan.categories[value] != 0)


@compiled
def _of_entries(
    log: Log,
    shift: int,
    begin: int,
    end: int,
    event: Event,
    own: Floats,
    layout: Layout,
    plan: Plan,
    column: int,
) -> float:
    """A column that looks at some entries of its window."""
    _, aggregate, value, _, _, partner, _ = plan.columns[column]
    if aggregate == a.SLOPE:
        return slope(log, begin, end, value, layout)
    if aggregate == a.OWN_SHARE:
        return share(log, begin, end, value, own[value], layout)
    number = plan.numbers[column]
    return of_rows(log, shift, begin, end, aggregate, number, value, partner, event, own, layout)


@compiled
def _with_panes(found: Floats, summary: Floats) -> Floats:
    """The walk's result over single events, with that over panes; ``summary`` is used up."""
    walked = np.empty(p.SUMMARY)
    walked[:6], walked[6:] = found, 0.0
    p.add_summary(summary, walked)
    return summary


@compiled
def _first_or_last(
    log: Log,
    shift: int,
    begin: int,
    end: int,
    aggregate: int,
    value: int,
    event: Event,
    layout: Layout,
    summary: Floats,
) -> float:
    """The first or the last value of panes and single events; ``summary`` is used up."""
    count = count_of(log, shift, begin, end, value, layout)
    if count > 0:
        first = newest(log, shift, begin, end, value, count, layout)
        last = newest(log, shift, begin, end, value, 1, layout)
        walked = np.zeros(p.SUMMARY)
        walked[p.COUNT] = count
        walked[p.FIRST_MS], walked[p.LAST_MS] = log.ints[first, TIME], log.ints[last, TIME]
        if value >= 0:
            walked[p.FIRST] = log.floats[first, layout.first + value]
            walked[p.LAST] = log.floats[last, layout.first + value]
        p.add_summary(summary, walked)
    if summary[p.COUNT] == 0.0:
        return np.nan
    if aggregate == a.LAST:
        return summary[p.LAST]
    if aggregate == a.FIRST:
        return summary[p.FIRST]
    return (event.time_ms - summary[p.FIRST_MS]) / 1_000.0


@compiled
def _of_panes(
    log: Log,
    region: Ints,
    event: Event,
    span: int,
    aggregate: int,
    number: float,
    sketch: int,
    values: Floats,
    panes: p.Panes,
) -> float:
    """How many different values, or a quantile, of panes and single events."""
    marks = p.window_marks(log, region, panes)
    low = (event.lows[span] + 1) // panes.size_ms
    high = (event.highs[span] + 1) // panes.size_ms - 1
    if aggregate == a.DISTINCT:
        return distinct(marks, sketch, low, high, values, panes.sketches)
    found = quantile(marks, sketch, low, high, values, panes.sketches, number)
    return found if found == found else of_all(values, aggregate, number, False)


@compiled
def observe(
    log: Log,
    rows: Rows,
    layout: Layout,
    plan: Plan,
    bounds: Bounds,
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
        bounds: Of the events' spans.
        features: Written, (n, columns).
        verdicts: Written: ``NEW``, ``LATE``, ``DUPLICATE`` or ``CONFLICT``, (n,).
        n: Where to begin.

    Returns:
        How many are done: if not all, the array or the index is full, which has to grow, or the
        next one's history has many older entries, which are to be merged.
    """
    scratch = _scratch(plan)
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
        if p.is_due(log, rows.slots[n], plan.panes):
            return n
        newest_ms = log.ints[region[END], TIME]
        if rows.times[n] < newest_ms - plan.lateness_ms:
            verdicts[n] = LATE
        row = insert(log, region, rows, n, layout)
        event = Event(rows.times[n], row, bounds.lows[n], bounds.highs[n])
        _measure(log, region, event, rows.values[n], layout, plan, scratch, features[n])
        expire(log, region, log.ints[region[END], TIME] - plan.horizon_ms)
        n += 1
    return n


@compiled
def observe_first(
    log: Log,
    rows: Rows,
    layout: Layout,
    plan: Plan,
    bounds: Bounds,
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
        bounds: Of the events' spans.
        features: Written, (n, columns).
        changed: Written: 1 where the event is kept, (n,).
        n: Where to begin.

    Returns:
        How many are done: if not all, the array is full; grow it and go on.
    """
    scratch = _scratch(plan)
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
        event = Event(rows.times[n], NO_ROW, bounds.lows[n], bounds.highs[n])
        _measure(log, region, event, rows.values[n], layout, plan, scratch, features[n])
        n += 1
    return n


@compiled
def measure(
    log: Log,
    slots: Ints,
    times: Ints,
    layout: Layout,
    plan: Plan,
    bounds: Bounds,
    features: Floats,
) -> None:
    """Measure the windows of events that are not entries themselves; arguments as ``observe``."""
    scratch, own = _scratch(plan), np.full(len(layout.blocks), np.nan)
    for n in range(len(slots)):
        region = log.regions[slots[n]]
        event = Event(times[n], NO_ROW, bounds.lows[n], bounds.highs[n])
        _measure(log, region, event, own, layout, plan, scratch, features[n])
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
        if p.is_due(log, slot, plan.panes):
            return n
        region = log.regions[rows.slots[n]]
        insert(log, region, rows, n, layout)
        expire(log, region, log.ints[region[END], TIME] - plan.horizon_ms)
        n += 1
    return n
