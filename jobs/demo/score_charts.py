"""Charts of one entity's scores over time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jobs.demo import svg
from jobs.demo.charts import FloatArray

STYLE = """
svg .anomaly { fill: var(--outage); }
svg .episode { fill: var(--bad); }
svg .threshold { stroke: var(--fallback); stroke-width: 1; stroke-dasharray: 4 3; }
svg .scores { fill: none; stroke: var(--model); stroke-width: 1.5; stroke-linejoin: round; }
td svg { width: 160px; }
"""

_TALL_PX = 190.0
_SMALL_PX = (160.0, 36.0)
Span = tuple[float, float]


def scores_chart(
    name: str,
    at_s: FloatArray,
    scores: FloatArray,
    threshold: float,
    anomalies_s: Sequence[Span],
    episodes_s: Sequence[Span],
    width_px: int = 440,
) -> str:
    """Scores over event time, the anomalies shaded, a bar on the axis for each episode.

    Args:
        name: Whose scores.
        at_s: Seconds since the replay's start, float64 (n,), ascending, n > 0.
        scores: float64 (n,), 0 to 1.
        threshold: Drawn as a line.
        anomalies_s: From and to, in the same seconds.
        episodes_s: The same.
        width_px: The drawing's width.
    """
    plot = svg.Plot(width_px, _TALL_PX)
    end_s = max(float(at_s[-1]), 1.0)
    x, y = plot.x(0.0, end_s), plot.y(1.0)
    shades = [
        svg.rect(cls, x(a), x(min(b, end_s)), top, bottom, f"{kind}: {a:,.0f} to {b:,.0f} s")
        for cls, kind, spans, top, bottom in (
            ("anomaly", "anomaly", anomalies_s, plot.top, plot.bottom),
            ("episode", "alert", episodes_s, plot.bottom - 5, plot.bottom),
        )
        for a, b in spans
        if a < end_s
    ]
    step_s = max(100 * round(end_s / 500), 100)
    ticks = [(float(t), f"{t:,}") for t in range(0, int(end_s) + 1, step_s)]
    parts = [
        *shades[: len(anomalies_s)],
        svg.y_axis(plot, y, [0.0, 0.5, 1.0], f"score of {name}", lambda v: f"{v:g}"),
        svg.line("threshold", plot.left, y(threshold), plot.right, y(threshold)),
        _curve(at_s, scores, x, y),
        svg.x_axis(plot, x, ticks, "event time since the start (s)"),
        *shades[len(anomalies_s) :],
    ]
    return svg.drawing(plot, f"Scores of {name}", parts)


def last_scores_chart(last: Sequence[tuple[int, float]], threshold: float) -> str:
    """The last scores before an alert, small: they need no axes.

    Args:
        last: Epoch ms and score, ascending, not empty.
        threshold: Drawn as a line.
    """
    plot = svg.Plot(*_SMALL_PX, left=1.0, top=2.0, margin_right=1.0, margin_bottom=2.0)
    times = np.array([time_ms for time_ms, _ in last], np.float64)
    scores = np.array([score for _, score in last])
    x = plot.x(times[0] - 1, times[-1] + 1)
    y = svg.Scale(min(0.3, scores.min()), max(0.8, scores.max()), plot.bottom, plot.top)
    parts = [
        svg.line("threshold", plot.left, y(threshold), plot.right, y(threshold)),
        _curve(times, scores, x, y),
    ]
    minutes = (times[-1] - times[0]) / 60_000
    return svg.drawing(plot, f"Scores of the last {minutes:.0f} minutes", parts)


def _curve(at: FloatArray, scores: FloatArray, x: svg.Scale, y: svg.Scale) -> str:
    points = " ".join(
        f"{x(a):.1f},{y(s):.1f}" for a, s in zip(at.tolist(), scores.tolist(), strict=True)
    )
    return svg.tag("polyline", cls="scores", points=points)
