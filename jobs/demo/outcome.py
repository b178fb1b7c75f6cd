"""What a finished demo run came to: its records, counted and timed, and the numbers from them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from jobs.metrics import Decision, average_precision, decide

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]


class AlertRow(NamedTuple):
    """An alert as a person reads it."""

    event_id: str
    key: str
    score: float
    reasons: tuple[str, ...] = ()

    @classmethod
    def of_record(cls, record: Mapping[str, Any]) -> AlertRow:
        """Take it from a record of the alerts topic, parsed."""
        if "prediction" not in record:
            return cls._of_episode(record)
        prediction = record["prediction"]
        reasons = tuple(_reason(reason) for reason in record["reasons"])
        return cls(prediction["event_id"], prediction["key"], prediction["score"], reasons)

    @classmethod
    def _of_episode(cls, record: Mapping[str, Any]) -> AlertRow:
        """Of an episode, or of a key that has gone silent."""
        if "entity" not in record:
            return cls(record["event_id"], record["key"], 0.0, ("silent",))
        peak, moved = record.get("peak"), record.get("moved_most")
        said = [f"{record['kind']} {record['state']}"]
        said += [f"{moved['feature']} = {moved['value']:.3g}"] if moved else []
        score = peak["score"] if peak else 0.0
        return cls(record["episode_id"], record["entity"]["value"], score, tuple(said))


def _reason(reason: Mapping[str, Any]) -> str:
    value = reason["value"]
    shown = "unknown" if value is None else f"{value:,.4g}"
    return f"{reason['feature']} = {shown} ({reason['contribution']:+.2f})"


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """A finished run; repeats of an at-least-once topic are dropped before.

    Attributes:
        input: Records written to the events topic.
        predictions: Events with a prediction, p, fallbacks included.
        alerts: Predictions above the threshold.
        dead_letters: Records that could not be scored.
        duplicates: Records whose event was seen before.
        fallbacks: Predictions that no model made.
        test_scores: float64 (m,) of the last part of time, scored by the model.
        test_labels: float64 (m,), 1 for fraud.
        latency_ms: float64 (p,) from a record's creation to its prediction's Kafka timestamp.
        scored_time_ms: int64 (p,), epoch.
        is_fallback: bool (p,).
        started_ms: Epoch.
        ended_ms: Epoch.
        threshold: A score above it is an alert.
        outages_ms: When the model server was stopped: from and to, epoch.
        facts: What else a reader needs to judge the run: model version, machine, versions.
        scored_inputs: Records that ended in predictions, if a prediction is of several.
        shed: Records of low priority that were not scored as there were too many.

    Raises:
        ValueError: arrays that belong together differ in length.
    """

    input: int
    predictions: int
    alerts: int
    dead_letters: int
    duplicates: int
    fallbacks: int
    test_scores: FloatArray
    test_labels: FloatArray
    latency_ms: FloatArray
    scored_time_ms: IntArray
    is_fallback: BoolArray
    started_ms: int
    ended_ms: int
    threshold: float
    outages_ms: tuple[tuple[int, int], ...] = ()
    facts: Mapping[str, str] = field(default_factory=dict)
    scored_inputs: int | None = None
    shed: int = 0

    def __post_init__(self) -> None:
        if self.test_scores.shape != self.test_labels.shape:
            raise ValueError("test_scores and test_labels must have one entry per test record")
        for name in ("latency_ms", "scored_time_ms", "is_fallback"):
            if getattr(self, name).shape != (self.predictions,):
                raise ValueError(f"{name} must have one entry per prediction: {self.predictions}")

    @property
    def scored(self) -> int:
        """Input records that ended in a prediction."""
        return self.predictions if self.scored_inputs is None else self.scored_inputs

    @property
    def unaccounted(self) -> int:
        """Input records that ended nowhere; negative if some ended twice, 0 when all is well."""
        return self.input - self.scored - self.dead_letters - self.duplicates - self.shed

    @property
    def duration_s(self) -> float:
        """From the start to the end of the run."""
        return (self.ended_ms - self.started_ms) / 1_000

    @property
    def base_rate(self) -> float:
        """Part of the test records that is fraud, NaN without test records."""
        return float(self.test_labels.mean()) if len(self.test_labels) else math.nan

    @property
    def records_per_s(self) -> float:
        """Predictions over the seconds from the first to the last; NaN if that is no time."""
        span_ms = int(np.ptp(self.scored_time_ms)) if self.predictions else 0
        return self.predictions * 1_000 / span_ms if span_ms else math.nan

    def decision(self) -> Decision:
        """What the threshold made of the test records."""
        return decide(self.test_labels, self.test_scores, self.threshold)

    def latency_percentile_ms(self, percent: float) -> float:
        """The latency that ``percent`` of the predictions do not exceed; NaN without any."""
        return float(np.percentile(self.latency_ms, percent)) if self.predictions else math.nan


def numbers(outcome: Outcome) -> dict[str, Any]:
    """The run as JSON-ready values; what is undefined is None."""
    decision = outcome.decision()
    measured = {
        "average_precision": average_precision(outcome.test_labels, outcome.test_scores),
        "base_rate": outcome.base_rate,
        "precision_at_threshold": decision.precision,
        "recall_at_threshold": decision.recall,
        "p50_ms": outcome.latency_percentile_ms(50),
        "p99_ms": outcome.latency_percentile_ms(99),
        "max_ms": outcome.latency_percentile_ms(100),
        "records_per_s": outcome.records_per_s,
        "duration_s": outcome.duration_s,
        "threshold": outcome.threshold,
    }
    return {
        **{name: getattr(outcome, name) for name in _COUNTS},
        **{name: value if math.isfinite(value) else None for name, value in measured.items()},
        "test_records": len(outcome.test_labels),
        "started_ms": outcome.started_ms,
        "ended_ms": outcome.ended_ms,
        "outages_ms": [list(outage) for outage in outcome.outages_ms],
        "facts": dict(outcome.facts),
    }


_COUNTS = (
    "input",
    "predictions",
    "alerts",
    "dead_letters",
    "duplicates",
    "shed",
    "fallbacks",
    "unaccounted",
)
