"""The report's charts as inline SVG text: no JavaScript, no fonts, no files of their own.

Colours are CSS variables (``STYLE``), so that one drawing serves a light and a dark page.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from jobs.demo import svg
from jobs.metrics import PrecisionRecallCurve

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

STYLE = """
svg { display: block; width: 100%; height: auto; }
svg text { fill: var(--muted); font-size: 12px; font-variant-numeric: tabular-nums; }
svg .strong { fill: var(--ink); font-weight: 600; }
svg .halo { paint-order: stroke; stroke: var(--page); stroke-width: 4px; }
svg .grid { stroke: var(--grid); stroke-width: 1; }
svg .axis { stroke: var(--muted); stroke-width: 1; }
svg .mark { stroke: var(--ink); stroke-width: 1; stroke-dasharray: 4 3; }
svg .curve { fill: none; stroke: var(--model); stroke-width: 2; stroke-linejoin: round; }
svg .point { fill: var(--ink); stroke: var(--page); stroke-width: 2; }
svg .model { fill: var(--model); }
svg .fallback { fill: var(--fallback); }
svg .outage { fill: var(--outage); }
"""

BUCKETS_PER_DECADE = 10

MAX_BARS = 120
"""Most bars of the throughput chart."""

_STEPS_S = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1_800, 3_600)
_TALL_PX = 300
_LOWEST_MS = 10.0 ** (-1 / BUCKETS_PER_DECADE)
"""Where a log axis draws 0 ms."""


def precision_recall_chart(
    curve: PrecisionRecallCurve,
    base_rate: float,
    point: tuple[float, float] | None,
    point_label: str,
    width_px: int = 440,
) -> str:
    """Precision over recall as steps; the area below them is the average precision.

    Args:
        curve: Its recall ascends.
        base_rate: Part of the records that is positive: the precision of a random choice.
        point: Recall and precision of the operating threshold, none if it picks no record.
        point_label: What is written at the point.
        width_px: The drawing's width.
    """
    plot = svg.Plot(width_px, _TALL_PX)
    x, y = plot.x(0.0, 1.0), plot.y(1.0)
    quarters = (0.0, 0.25, 0.5, 0.75, 1.0)
    parts = [
        svg.y_axis(plot, y, quarters, "precision", _two_digits),
        svg.x_axis(plot, x, [(q, _two_digits(q)) for q in quarters], "recall"),
        svg.line("mark", plot.left, y(base_rate), plot.right, y(base_rate)),
        svg.tag("path", cls="curve", d=_steps(curve, x, y)),
        svg.text(plot.left + 6, y(base_rate) - 6, f"base rate {base_rate:.2%}", cls="halo"),
    ]
    if point is not None:
        parts += _operating_point(plot, x(point[0]), y(point[1]), point_label)
    return svg.drawing(plot, "Precision over recall", parts)


def _steps(curve: PrecisionRecallCurve, x: svg.Scale, y: svg.Scale) -> str:
    # More alerts without a further hit have no width in the area.
    wide = np.flatnonzero(np.diff(curve.recall, prepend=0.0) > 0)
    ups = [y(value) for value in curve.precision[wide].tolist()]
    acrosses = [x(value) for value in curve.recall[wide].tolist()]
    moves = [f"V{up:.1f}H{across:.1f}" for across, up in zip(acrosses, ups, strict=True)]
    return f"M{x(0.0):.1f} {ups[0]:.1f}" + "".join(moves)


def _operating_point(plot: svg.Plot, x: float, y: float, label: str) -> list[str]:
    # The curve falls: it leaves room above its right and below its left.
    fits_right = x + 8 * len(label) < plot.width
    anchor, across, up = ("start", x + 9, y - 9) if fits_right else ("end", x - 9, y + 20)
    return [
        svg.tag("circle", svg.title(label), cls="point", cx=x, cy=y, r=6),
        svg.text(across, up, label, anchor, "strong halo"),
    ]


def latency_buckets(latency_ms: FloatArray) -> tuple[IntArray, IntArray]:
    """Counts in buckets whose whole-millisecond edges grow by about a quarter.

    Args:
        latency_ms: float64 (p,), p > 0, finite; below 0 counts as 0.

    Returns:
        int64 (b + 1,) edges in ms and int64 (b,) counts, from the first to the last bucket that
        has a record. A bucket holds its lower edge and not its upper.
    """
    decades = math.log10(max(float(latency_ms.max()), 1.0)) + 1
    powers = 10.0 ** (np.arange(math.ceil(decades * BUCKETS_PER_DECADE) + 1) / BUCKETS_PER_DECADE)
    # Timestamps are whole milliseconds: a bucket between two of them would always be empty.
    edges = np.unique(np.append(0.0, np.ceil(powers.round(6)))).astype(np.int64)
    counts, _ = np.histogram(np.maximum(latency_ms, 0.0), edges)
    used = np.flatnonzero(counts)
    first, last = int(used[0]), int(used[-1])
    return edges[first : last + 2], counts[first : last + 1].astype(np.int64)


def latency_chart(
    latency_ms: FloatArray,
    marks_ms: Sequence[tuple[str, float]],
    width_px: int = 440,
    what: str = "record created to prediction in Kafka",
) -> str:
    """Histogram of latencies over a logarithmic axis.

    Args:
        latency_ms: float64 (p,), p > 0, finite.
        marks_ms: Names and values to mark with a vertical line.
        width_px: The drawing's width.
        what: From when to when.
    """
    plot = svg.Plot(width_px, _TALL_PX, top=34.0 + 16.0 * len(marks_ms))
    edges, counts = latency_buckets(latency_ms)
    x = plot.x(_log_ms(edges[0]), _log_ms(edges[-1]))
    ticks = svg.round_ticks(float(counts.max()))
    y = plot.y(ticks[-1])
    parts = [
        svg.y_axis(plot, y, ticks, "records per bucket", _whole),
        svg.x_axis(plot, x, _latency_ticks(edges), f"{what} (ms, log)"),
        *_latency_bars(edges, counts, x, y),
        *_latency_marks(plot, x, marks_ms),
    ]
    return svg.drawing(plot, "Latency histogram", parts)


def _log_ms(value_ms: float) -> float:
    return math.log10(max(value_ms, _LOWEST_MS))


def _latency_bars(edges: IntArray, counts: IntArray, x: svg.Scale, y: svg.Scale) -> list[str]:
    total = int(counts.sum())
    bars = []
    for low, high, count in zip(
        edges[:-1].tolist(), edges[1:].tolist(), counts.tolist(), strict=True
    ):
        hover = f"{low:,} to {high:,} ms: {count:,} records ({count / total:.2%})"
        start, end = x(_log_ms(low)), x(_log_ms(high))
        bars.append(svg.rect("model", start + 0.5, end - 0.5, y(count), y(0), hover))
    return bars


def _latency_marks(
    plot: svg.Plot, x: svg.Scale, marks_ms: Sequence[tuple[str, float]]
) -> list[str]:
    parts = []
    for row, (name, value_ms) in enumerate(marks_ms):
        across, up = x(_log_ms(value_ms)), plot.top - 6 - 16 * (len(marks_ms) - 1 - row)
        anchor, shift = ("end", -5) if across > (plot.left + plot.right) / 2 else ("start", 5)
        label = f"{name} {value_ms:,.0f} ms"
        parts += [
            svg.line("mark", across, up - 10, across, plot.bottom),
            svg.text(across + shift, up, label, anchor, "strong halo"),
        ]
    return parts


def _latency_ticks(edges: IntArray) -> list[tuple[float, str]]:
    low, high = int(edges[0]), int(edges[-1])
    decades = range(len(str(high)))
    for digits in ((1, 2, 5), (1, 3), (1,)):
        ticks = [d * 10**n for n in decades for d in digits if low <= d * 10**n <= high]
        if len(ticks) <= 9:
            break
    shown = ticks if len(ticks) > 1 else [low, high]
    return [(_log_ms(tick), f"{tick:,}") for tick in shown]


@dataclass(frozen=True, slots=True)
class Rates:
    """Scored records over time.

    Attributes:
        bin_s: Width of a bin.
        model: int64 (b,) records per bin that the model scored.
        fallback: int64 (b,) records per bin that got the fallback.
    """

    bin_s: int
    model: IntArray
    fallback: IntArray


def rates(
    scored_time_ms: IntArray, is_fallback: BoolArray, started_ms: int, ended_ms: int
) -> Rates:
    """Count records in equal bins from the start on; the last bin may end after the run.

    Args:
        scored_time_ms: int64 (p,), all within the run.
        is_fallback: bool (p,).
        started_ms: The run's start, epoch.
        ended_ms: The run's end, epoch.
    """
    seconds = max((ended_ms - started_ms) / 1_000, 1e-3)
    fitting = (step for step in _STEPS_S if seconds / step <= MAX_BARS)
    bin_s = next(fitting, math.ceil(seconds / MAX_BARS))
    bins = max(math.ceil(seconds / bin_s), 1)
    at = np.minimum((scored_time_ms - started_ms) // (bin_s * 1_000), bins - 1)
    return Rates(
        bin_s,
        np.bincount(at[~is_fallback], minlength=bins).astype(np.int64),
        np.bincount(at[is_fallback], minlength=bins).astype(np.int64),
    )


def throughput_chart(
    counted: Rates, outages_s: Sequence[tuple[float, float]], width_px: int = 920
) -> str:
    """Scored records per second as stacked bars, with the model server's outages shaded.

    Args:
        counted: Records per bin.
        outages_s: From and to, in seconds since the start.
        width_px: The drawing's width.
    """
    plot = svg.Plot(width_px, _TALL_PX - 40)
    end_s = len(counted.model) * counted.bin_s
    x = plot.x(0.0, float(end_s))
    stacked = (counted.model + counted.fallback) / counted.bin_s
    ticks = svg.round_ticks(float(stacked.max()))
    y = plot.y(ticks[-1])
    parts = [
        *(_outage(plot, x, start_s, min(stop_s, end_s)) for start_s, stop_s in outages_s),
        svg.y_axis(plot, y, ticks, "scored (records/s)", _whole),
        *_rate_bars(counted, x, y),
        svg.x_axis(plot, x, _time_ticks(end_s, width_px), "time since the start (s)"),
    ]
    return svg.drawing(plot, "Scored records per second", parts)


def _rate_bars(counted: Rates, x: svg.Scale, y: svg.Scale) -> list[str]:
    bin_s = counted.bin_s
    gap = 0.5 if x(bin_s) - x(0) > 4 else 0.0
    bars = []
    pairs = zip(counted.model.tolist(), counted.fallback.tolist(), strict=True)
    for at, (model, fallback) in enumerate(pairs):
        start, end = x(at * bin_s) + gap, x((at + 1) * bin_s) - gap
        when = f"{at * bin_s:,} to {(at + 1) * bin_s:,} s"
        middle, top = y(model / bin_s), y((model + fallback) / bin_s)
        bars += [
            svg.rect("model", start, end, middle, y(0), f"{when}: model {model / bin_s:,.0f}/s"),
            svg.rect(
                "fallback", start, end, top, middle, f"{when}: fallback {fallback / bin_s:,.0f}/s"
            ),
        ]
    return bars


def _outage(plot: svg.Plot, x: svg.Scale, from_s: float, to_s: float) -> str:
    hover = f"model server stopped: {from_s:,.1f} to {to_s:,.1f} s"
    start, end = max(x(from_s), plot.left), x(to_s)
    # Higher than the highest bar, which would hide it.
    return svg.rect("outage", start, max(end, start + 1), plot.top - 10, plot.bottom, hover)


def _time_ticks(end_s: float, width_px: float) -> list[tuple[float, str]]:
    most = width_px / 60
    step = next((s for s in _STEPS_S if end_s / s <= most), math.ceil(end_s / most))
    return [(float(at), f"{at:,}") for at in range(0, math.floor(end_s) + 1, step)]


def _whole(value: float) -> str:
    return f"{value:,.0f}"


def _two_digits(value: float) -> str:
    return f"{value:.2f}"
