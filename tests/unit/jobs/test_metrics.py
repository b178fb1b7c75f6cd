"""Ranking metrics against definitions that take O(n^2)."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.metrics import average_precision, decide, precision_recall_curve, roc_auc

Scored = list[tuple[int, float]]

# Few distinct scores, so that ties are common; any float besides.
scored: st.SearchStrategy[Scored] = st.lists(
    st.tuples(
        st.integers(0, 1),
        st.one_of(st.sampled_from([0.0, -0.0, 0.25, 0.5, 1.0]), st.floats(allow_nan=False)),
    ),
    max_size=40,
)


def split(items: Scored) -> tuple[np.ndarray, np.ndarray]:
    return np.array([y for y, _ in items], np.int64), np.array([s for _, s in items], np.float64)


@given(items=scored)
def test_average_precision(items: Scored) -> None:
    positives = sum(y for y, _ in items)
    got = average_precision(*split(items))
    if not positives:
        assert math.isnan(got)
        return
    total = recall = 0.0
    for threshold in sorted({s for _, s in items}, reverse=True):
        above = [y for y, s in items if s >= threshold]
        total += (sum(above) / positives - recall) * sum(above) / len(above)
        recall = sum(above) / positives
    assert got == pytest.approx(total, rel=1e-12)


@given(items=scored)
def test_roc_auc(items: Scored) -> None:
    highs = [s for y, s in items if y]
    lows = [s for y, s in items if not y]
    got = roc_auc(*split(items))
    if not highs or not lows:
        assert math.isnan(got)
        return
    wins = sum(1.0 if p > n else 0.5 if p == n else 0.0 for p in highs for n in lows)
    assert got == pytest.approx(wins / (len(highs) * len(lows)), rel=1e-12)


@given(items=scored.filter(lambda items: any(y for y, _ in items)))
def test_precision_recall_curve(items: Scored) -> None:
    curve = precision_recall_curve(*split(items))
    assert curve.thresholds.tolist() == sorted({s for _, s in items}, reverse=True)
    for precision, recall, threshold in zip(
        curve.precision, curve.recall, curve.thresholds, strict=True
    ):
        above = [y for y, s in items if s >= threshold]
        assert precision == pytest.approx(sum(above) / len(above))
        assert recall == pytest.approx(sum(above) / sum(y for y, _ in items))


@given(items=scored, threshold=st.sampled_from([0.0, 0.25, 0.5, 1.0]))
def test_decide(items: Scored, threshold: float) -> None:
    got = decide(*split(items), threshold)
    alerts = [y for y, s in items if s > threshold]
    positives = sum(y for y, _ in items)
    assert got.alerts == len(alerts)
    rates = (got.precision, got.recall, got.f1)
    wholes = (len(alerts), positives, len(alerts) + positives)
    for rate, part, whole in zip(rates, (1, 1, 2), wholes, strict=True):
        want = part * sum(alerts) / whole if whole else math.nan
        assert rate == pytest.approx(want, nan_ok=True)


@pytest.mark.parametrize(
    ("labels", "scores", "ap", "auc"),
    [
        ([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8], 0.8333333333333333, 0.75),  # scikit-learn's example
        ([0, 1], [0.5, 0.5], 0.5, 0.5),
        ([0, 0, 1, 1], [1, 2, 3, 4], 1.0, 1.0),
        ([1, 1, 0, 0], [1, 2, 3, 4], 5 / 12, 0.0),
    ],
)
def test_known_values(labels: list[int], scores: list[float], ap: float, auc: float) -> None:
    assert average_precision(np.array(labels), np.array(scores)) == pytest.approx(ap)
    assert roc_auc(np.array(labels), np.array(scores)) == pytest.approx(auc)


@pytest.mark.parametrize(
    ("labels", "scores", "message"),
    [
        ([1, 0], [0.5], "shape"),
        ([[1, 0]], [[0.5, 0.5]], "shape"),
        ([2, 1], [0.5, 0.5], "0 or 1"),
        ([math.nan, 1], [0.5, 0.5], "0 or 1"),
        ([1, 0], [math.nan, 0.5], "NaN"),
        ([0, 0], [0.5, 0.5], "no positive"),
        ([], [], "no positive"),
    ],
)
def test_wrong_input_is_refused(labels: list[float], scores: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        precision_recall_curve(np.array(labels), np.array(scores))
