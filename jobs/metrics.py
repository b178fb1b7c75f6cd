"""How well scores rank and how well a threshold on them decides; NumPy only.

Equal scores are one step of every curve: their order among each other, which means nothing, never
changes a figure.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class PrecisionRecallCurve:
    """Precision and recall when everything at or above a threshold is an alert.

    Attributes:
        precision: float64 (k,).
        recall: float64 (k,), ascending; its last value is 1.
        thresholds: The distinct scores, float64 (k,), descending.
    """

    precision: FloatArray
    recall: FloatArray
    thresholds: FloatArray


@dataclass(frozen=True, slots=True)
class Decision:
    """What a threshold made of scored rows; a rate whose denominator is 0 is NaN.

    Attributes:
        alerts: How many rows score above the threshold.
        precision: Share of the alerts that are positive.
        recall: Share of the positives that are alerts.
        f1: Harmonic mean of both.
    """

    alerts: int
    precision: float
    recall: float
    f1: float


def precision_recall_curve(
    labels: npt.NDArray[Any], scores: npt.NDArray[Any]
) -> PrecisionRecallCurve:
    """The curve over all distinct scores.

    Args:
        labels: 0 or 1, shape (n,).
        scores: Shape (n,), larger is more positive.

    Raises:
        ValueError: the shapes differ, a label is neither 0 nor 1, a score is NaN, or there is no
            positive.
    """
    hits, alerts, thresholds = _steps(labels, scores)
    if not len(hits) or hits[-1] == 0:
        raise ValueError("no positive label: precision and recall mean nothing")
    return PrecisionRecallCurve(hits / alerts, hits / hits[-1], thresholds)


def average_precision(labels: npt.NDArray[Any], scores: npt.NDArray[Any]) -> float:
    """Area under the precision-recall curve as a step function, sum of ``(R_k - R_k-1) P_k``.

    Returns:
        0 to 1; NaN without a positive label.

    Raises:
        ValueError: see ``precision_recall_curve``.
    """
    if not np.any(labels):
        return math.nan
    curve = precision_recall_curve(labels, scores)
    return float(np.sum(np.diff(curve.recall, prepend=0.0) * curve.precision))


def roc_auc(labels: npt.NDArray[Any], scores: npt.NDArray[Any]) -> float:
    """Probability that a positive scores above a negative, a tie counted half (Mann-Whitney U).

    Returns:
        0 to 1; NaN unless there are both labels.

    Raises:
        ValueError: see ``precision_recall_curve``.
    """
    hits, alerts, _ = _steps(labels, scores)
    misses = alerts - hits
    if not len(hits) or hits[-1] == 0 or misses[-1] == 0:
        return math.nan
    higher = hits - np.diff(hits, prepend=0.0) / 2  # positives above each step, half of its own
    return float(np.sum(np.diff(misses, prepend=0.0) * higher) / (hits[-1] * misses[-1]))


def decide(labels: npt.NDArray[Any], scores: npt.NDArray[Any], threshold: float) -> Decision:
    """Precision, recall and F1 when a score above the threshold is an alert, as in the job.

    Args:
        labels: 0 or 1, shape (n,).
        scores: Shape (n,).
        threshold: A score equal to it is no alert.
    """
    alert = np.asarray(scores) > threshold
    positive = np.asarray(labels) > 0
    alerts, positives = int(alert.sum()), int(positive.sum())
    hits = int((alert & positive).sum())
    return Decision(
        alerts, _rate(hits, alerts), _rate(hits, positives), _rate(2 * hits, alerts + positives)
    )


def _rate(part: int, whole: int) -> float:
    return part / whole if whole else math.nan


def _steps(
    labels: npt.NDArray[Any], scores: npt.NDArray[Any]
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Positives and rows at or above each distinct score, and those scores, descending."""
    y, s = np.asarray(labels, np.float64), np.asarray(scores, np.float64)
    if y.ndim != 1 or y.shape != s.shape:
        raise ValueError(f"labels of shape {y.shape} and scores of {s.shape} must be equal rows")
    if not np.isin(y, (0.0, 1.0)).all():
        raise ValueError("labels must be 0 or 1")
    if np.isnan(s).any():
        raise ValueError("scores must not be NaN")
    order = np.argsort(-s, kind="stable")
    y, s = y[order], s[order]
    last = np.flatnonzero(np.append(s[1:] != s[:-1], True)) if len(s) else np.empty(0, np.intp)
    return np.cumsum(y)[last], last + 1.0, s[last]
