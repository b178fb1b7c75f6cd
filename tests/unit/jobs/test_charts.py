from __future__ import annotations

import re
from xml.etree import ElementTree

import numpy as np
import pytest

from jobs.demo import charts, svg
from jobs.metrics import average_precision, precision_recall_curve


def shapes(drawing: str, name: str, cls: str) -> list[ElementTree.Element]:
    return [e for e in ElementTree.fromstring(drawing).iter(name) if e.get("class") == cls]


def hovers(drawing: str, cls: str) -> list[str | None]:
    return [rect.findtext("title") for rect in shapes(drawing, "rect", cls)]


def texts(drawing: str) -> list[str | None]:
    return [e.text for e in ElementTree.fromstring(drawing).iter("text")]


@pytest.mark.parametrize(
    ("high", "ticks"),
    [
        (0, [0, 1]),
        (1, [0, 1]),
        (3, [0, 1, 2, 3]),
        (7, [0, 2, 4, 6, 8]),
        (100, [0, 20, 40, 60, 80, 100]),
        (101, [0, 50, 100, 150]),
        (1_234, [0, 500, 1_000, 1_500]),
    ],
)
def test_ticks_are_round_and_cover_the_highest_value(high: float, ticks: list[float]) -> None:
    assert svg.round_ticks(high) == ticks


def test_every_text_and_attribute_is_escaped() -> None:
    drawn = svg.text(0, 0, "<b>&", cls='"x') + svg.title("<i>")
    assert "<b>" not in drawn and "<i>" not in drawn and 'class="&quot;x"' in drawn


@pytest.mark.parametrize(
    ("latency_ms", "edges", "counts"),
    [
        ([0.0], [0, 1], [1]),
        ([-3.0, 0.5], [0, 1], [2]),
        ([1.0, 1.0, 2.0], [1, 2, 3], [2, 1]),
        ([10.0, 12.9, 13.0, 99.0], [10, 13, 16, 20, 26, 32, 40, 51, 64, 80, 100], None),
        ([1_000.0], [1_000, 1_259], [1]),
    ],
)
def test_buckets_run_from_the_first_to_the_last_used(
    latency_ms: list[float], edges: list[int], counts: list[int] | None
) -> None:
    found_edges, found = charts.latency_buckets(np.array(latency_ms))
    assert found_edges.tolist() == edges
    assert found.sum() == len(latency_ms)
    if counts is not None:
        assert found.tolist() == counts


@pytest.mark.parametrize("latency_ms", [0.0, 1.0, 9.99, 26.0, 59_999.0, 1e7])
def test_one_latency_falls_into_its_bucket(latency_ms: float) -> None:
    edges, counts = charts.latency_buckets(np.array([latency_ms]))
    assert edges[0] <= latency_ms < edges[1] and counts.tolist() == [1]


def test_latency_bars_say_their_counts_and_the_marks_their_values() -> None:
    drawing = charts.latency_chart(np.array([10.0, 11.0, 12.0, 30.0]), [("p50", 11.5), ("p99", 30)])
    assert hovers(drawing, "model") == [
        "10 to 13 ms: 3 records (75.00%)",
        "26 to 32 ms: 1 records (25.00%)",
    ]
    assert {"p50 12 ms", "p99 30 ms"} <= set(texts(drawing))


def test_the_area_below_the_drawn_curve_is_the_average_precision() -> None:
    random = np.random.default_rng(3)
    labels = (random.random(400) < 0.2).astype(float)
    scores = np.round(labels * 0.3 + random.random(400), 2)
    curve = precision_recall_curve(labels, scores)
    drawing = charts.precision_recall_chart(curve, 0.2, (0.5, 0.5), "threshold", width_px=4_400)
    assert _area(drawing, svg.Plot(4_400, 300)) == pytest.approx(
        average_precision(labels, scores), abs=1e-3
    )


def _area(drawing: str, plot: svg.Plot) -> float:
    (path,) = shapes(drawing, "path", "curve")
    x, area = plot.left, 0.0
    for up, across in re.findall(r"V([\d.]+)H([\d.]+)", path.get("d", "")):
        area += (float(across) - x) * (plot.bottom - float(up))
        x = float(across)
    return area / ((plot.right - plot.left) * (plot.bottom - plot.top))


def test_the_operating_point_stays_away_when_nothing_is_an_alert() -> None:
    curve = precision_recall_curve(np.array([0.0, 1.0]), np.array([0.1, 0.2]))
    assert "circle" not in charts.precision_recall_chart(curve, 0.5, None, "")
    drawing = charts.precision_recall_chart(curve, 0.5, (1.0, 1.0), "threshold 0.1")
    assert "circle" in drawing and "base rate 50.00%" in texts(drawing)


def test_rates_count_each_record_once_and_fallbacks_apart() -> None:
    times = np.array([1_000, 1_999, 2_000, 3_999, 4_000])
    is_fallback = np.array([False, True, False, True, False])
    found = charts.rates(times, is_fallback, started_ms=1_000, ended_ms=4_000)
    assert found.bin_s == 1
    assert found.model.tolist() == [1, 1, 1]  # the end belongs to the last bin
    assert found.fallback.tolist() == [1, 0, 1]


@pytest.mark.parametrize(
    ("seconds", "bin_s"), [(0, 1), (120, 1), (121, 2), (3_600, 30), (10**7, 83_334)]
)
def test_bins_widen_with_the_run(seconds: int, bin_s: int) -> None:
    found = charts.rates(np.array([0]), np.array([False]), 0, seconds * 1_000)
    assert found.bin_s == bin_s and 1 <= len(found.model) <= charts.MAX_BARS


def test_throughput_stacks_fallbacks_on_the_model_and_shades_outages() -> None:
    counted = charts.Rates(2, np.array([10, 0]), np.array([4, 6]))
    drawing = charts.throughput_chart(counted, [(1.0, 9.0)])
    assert hovers(drawing, "model") == ["0 to 2 s: model 5/s"]
    assert hovers(drawing, "fallback") == ["0 to 2 s: fallback 2/s", "2 to 4 s: fallback 3/s"]
    assert hovers(drawing, "outage") == ["model server stopped: 1.0 to 4.0 s"]
    model, fallback = shapes(drawing, "rect", "model")[0], shapes(drawing, "rect", "fallback")[0]
    base = float(fallback.get("y", "")) + float(fallback.get("height", ""))
    assert base == pytest.approx(float(model.get("y", "")), abs=0.02)
