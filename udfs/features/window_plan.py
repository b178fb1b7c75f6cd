"""From declared features to what the compiled loops need: words, spans and columns."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np

from udfs.compiled import Floats, Ints
from udfs.definition.feature import WindowFeature
from udfs.definition.window import Window
from udfs.features import aggregates as a
from udfs.features import log_kernels as log
from udfs.features.aggregates import Named, parse_aggregate
from udfs.features.clock import local_midnight
from udfs.features.log_kernels import NEVER_MS
from udfs.features.measure_kernels import BY_EVENTS, BY_FIRST, BY_SESSION, BY_TIME, Bounds, Plan
from udfs.features.pane_kernels import Panes
from udfs.features.series import Series
from udfs.features.sketch_kernels import SMALLEST, Sketches

_BLOCKS = {
    a.SUM: (log.SUMS,),
    a.MEAN: (log.SUMS,),
    a.RATIO_TO_MEAN: (log.SUMS,),
    a.VARIANCE: (log.SUMS, log.SPREADS),
    a.STD: (log.SUMS, log.SPREADS),
    a.ZSCORE: (log.SUMS, log.SPREADS),
    a.MIN: (log.LOWS,),
    a.MAX: (log.HIGHS,),
}
_KINDS = 5


class WindowPlan:
    """The windows of one key over one stream.

    Attributes:
        columns: The features' names, in the order of the plan.
        series: The series that entries are kept with.
        layout: Of an entry.
        plan: What to measure.
        kept_words: Words of an entry that are stored.
        words: Words of an entry in memory.
        pane_names: The length of panes, and what they hold; empty if no window has panes.

    Args:
        windows: The features.
        series: Their series; each of those that ``series_of`` names.
        nullable: Whether a series can lack a value.
        texts: The string fields.
        identified: Whether entries are known by an id.
        horizon_ms: How long entries are kept.
        lateness_ms: An event this much older than its key's newest is late.
        dedupe_ms: An id seen within this time before is a repeat; 0 looks for none.
        exact_ms: How long single entries are needed, if windows have panes.
    """

    def __init__(
        self,
        windows: Sequence[WindowFeature],
        series: Sequence[Series],
        nullable: Sequence[bool],
        texts: frozenset[str],
        identified: bool,
        horizon_ms: int,
        lateness_ms: int,
        dedupe_ms: int,
        exact_ms: int = 0,
    ) -> None:
        self.columns = tuple(column for w in windows for column in w.columns)
        self.series = tuple(series)
        self._spans = sorted(
            dict.fromkeys((span, w.delay) for w in windows for span in w.windows),
            key=lambda span: (span[1], _end_of(span[0]), span[0].reach_ms),
        )
        named = [
            (self._spans.index((span, w.delay)), parse_aggregate(aggregate), self._value(w), span)
            for w in windows
            for span, aggregate in product(w.windows, w.aggregates)
        ]
        self._lay_out(named, nullable, identified)
        panes = self._panes(named, exact_ms)
        self.plan = Plan(
            np.array([_kind(span) for span, _ in self._spans], np.int64).reshape(-1, 2),
            *self._columns(named, panes),
            np.array([s.value in texts for s in series], np.int64),
            horizon_ms,
            lateness_ms,
            dedupe_ms,
            panes,
        )

    def _value(self, window: WindowFeature) -> int:
        own = series_of(window)
        return self.series.index(own[0]) if own else -1

    def _lay_out(
        self, named: Sequence[_Column], nullable: Sequence[bool], identified: bool
    ) -> None:
        first = 3 if identified else 1
        self.kept_words = word = first + len(self.series)
        blocks = np.full((len(self.series), _KINDS), -1, np.int64)
        needed = {
            (value, kind)
            for _, aggregate, value, span in named
            if span.kind != "half_life" and value >= 0
            for kind in _BLOCKS.get(aggregate.aggregate.code, ())
        } | {(value, log.COUNTS) for value, can_lack in enumerate(nullable) if can_lack}
        for value, kind in sorted(needed):
            blocks[value, kind] = word
            word += 2 if kind == log.SUMS else 1
        gap = -1
        if any(span.kind == "session" for span, _ in self._spans):
            gap, word = word, word + 1
        self._decays = sorted(
            {(value, span.half_life) for _, _, value, span in named if span.half_life is not None}
        )
        decays = [(value, word + 2 * n) for n, (value, _) in enumerate(self._decays)]
        self.words = word + 2 * len(decays)
        self.layout = log.Layout(
            first,
            blocks,
            gap,
            np.array(decays, np.int64).reshape(-1, 2),
            np.array([half_life for _, half_life in self._decays], np.float64),
        )

    def _panes(self, named: Sequence[_Column], exact_ms: int) -> Panes:
        paned = [column for column in named if column[3].panes]
        size_ms, error = 0, 0.05
        if paned:
            window = paned[0][3]
            size_ms, error = window.panes or 0, window.pane_error
        sketched = sorted({(v, g.aggregate.code) for _, g, v, _ in paned if _is_sketched(g)})
        summed = sorted({v for _, g, v, _ in paned if not _is_sketched(g)})
        log_gamma = math.log((1 + error) / (1 - error))
        sketches = Sketches(
            np.array(sketched, np.int64).reshape(-1, 2),
            max(4, math.ceil(2 * math.log2(1.04 / error))),
            log_gamma,
            1 - math.ceil(math.log(SMALLEST) / log_gamma),
        )
        self.pane_names = self._pane_names(size_ms, error, summed, sketched) if paned else ()
        return Panes(size_ms, exact_ms, np.array(summed, np.int64), sketches)

    def _pane_names(
        self, size_ms: int, error: float, summed: list[int], sketched: list[tuple[int, int]]
    ) -> tuple[str, ...]:
        """What names the panes in stored state: it must never change for the same ones."""
        names = {-1: "events"} | {n: s.name for n, s in enumerate(self.series)}
        kinds = {a.DISTINCT: "distinct", a.QUANTILE: "quantiles"}
        return (
            f"panes of {size_ms} ms, error {error}",
            *(f"summary of {names[value]}" for value in summed),
            *(f"{kinds[kind]} of {names[value]}" for value, kind in sketched),
        )

    def _columns(self, named: Sequence[_Column], panes: Panes) -> tuple[Ints, Floats]:
        rows = []
        others = {(s.beside, s.where, s.value): n for n, s in enumerate(self.series)}
        partners = {
            n: others.get((s.value, s.where, s.beside), -1) for n, s in enumerate(self.series)
        }
        partners[-1] = -1
        for target, (number, aggregate, value, span) in enumerate(named):
            decay = self._decays.index((value, span.half_life)) if span.half_life else -1
            rows.append(
                (
                    number,
                    aggregate.aggregate.code,
                    value,
                    decay,
                    target,
                    partners[value],
                    _place_in(panes, aggregate, value) if span.panes else -1,
                    aggregate.number,
                )
            )
        # Columns of a value whose spans have one end share a walk, the shortest span first.
        rows.sort(key=lambda row: (row[2], row[0]))
        table = np.array(rows, np.float64).reshape(-1, 8)
        return np.ascontiguousarray(table[:, :7].astype(np.int64)), table[:, 7].copy()

    def bounds(self, times: Ints) -> Bounds:
        """When each span of each event begins (exclusive) and ends (inclusive).

        Args:
            times: Event times, epoch ms, int64 (n,).
        """
        lows = np.empty((len(times), len(self._spans)), np.int64)
        highs = np.empty_like(lows)
        for n, (window, delay_ms) in enumerate(self._spans):
            lows[:, n], highs[:, n] = bounds_of(window, times - delay_ms)
        return Bounds(lows, highs)


_Column = tuple[int, Named, int, Window]


def _is_sketched(named: Named) -> bool:
    return named.aggregate.code in (a.DISTINCT, a.QUANTILE)


def _place_in(panes: Panes, named: Named, value: int) -> int:
    """The summary or the sketch of a column."""
    rows: list[Any] = (panes.sketches.values if _is_sketched(named) else panes.values).tolist()
    return rows.index([value, named.aggregate.code] if _is_sketched(named) else value)


def series_of(window: WindowFeature) -> tuple[Series, ...]:
    """The series that a feature's windows read; two for a point, none to count all events."""
    match window.value:
        case None:
            return (Series(None, window.where),) if window.where else ()
        case str(value):
            return (Series(value, window.where),)
        case (latitude, longitude):
            return (
                Series(latitude, window.where, longitude),
                Series(longitude, window.where, latitude),
            )


def _end_of(window: Window) -> int:
    return window.every or 0


def _kind(window: Window) -> tuple[int, int]:
    if window.events is not None:
        return BY_EVENTS, window.events
    if window.first is not None:
        return BY_FIRST, window.first
    if window.session is not None:
        return BY_SESSION, window.session
    return BY_TIME, 0


def bounds_of(window: Window, at: Ints) -> tuple[Ints, Ints]:
    """After which time a window begins, and with which it ends.

    Args:
        window: Any kind; one by events, session or first events does not begin earlier than that.
        at: Event times less the delay, epoch ms, int64 (n,).

    Returns:
        Two arrays, int64 (n,).
    """
    if window.tumbling is not None:
        return at // window.tumbling * window.tumbling - 1, at
    if window.hopping is not None and window.every is not None:
        end = at // window.every * window.every - 1
        return end - window.hopping, end
    if window.day is not None:
        return local_midnight(at, window.day) - 1, at
    if window.sliding is not None and window.panes is not None:
        return (at - window.sliding + 1) // window.panes * window.panes - 1, at
    if window.first is not None:
        return np.full_like(at, NEVER_MS), at
    return at - window.reach_ms, at
