"""What a demo came to: its numbers for the report and the table in the terminal."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import version

import numpy as np
import numpy.typing as npt
import pandas as pd

from jobs.demo.data import DAY_MS
from jobs.demo.model import Model
from jobs.demo.outcome import FloatArray, Outcome, numbers
from jobs.demo.run import Performance, Stage
from jobs.demo.watch import Tally

NEXT_STEPS = """\
next:
  streamscore stack up && streamscore train    a broker and a model of your own
  streamscore serve &                          the model server
  streamscore run conf/fraud.yaml              the same job, until Ctrl-C
  streamscore config show --reference          what can be set"""


def outcome(
    model: Model,
    stage: Stage,
    performance: Performance,
    frame: pd.DataFrame,
    facts: Mapping[str, str],
) -> Outcome:
    """The run as the report wants it.

    Args:
        model: Which part of time it did not see.
        stage: What the demo played on.
        performance: Has run.
        frame: The transactions with their labels.
        facts: What else a reader needs.
    """
    part = test_part(performance.tally, frame, model.test_from_ms)
    outages_ms = tuple(performance.result.outages_ms)
    return replace(outcome_of(stage, performance, part, facts), outages_ms=outages_ms)


def outcome_of(
    stage: Stage,
    performance: Performance,
    part: tuple[FloatArray, FloatArray],
    facts: Mapping[str, str],
) -> Outcome:
    """What a run of any scoring job came to.

    Args:
        stage: What the demo played on.
        performance: Has run.
        part: Scores and labels of the test part, float64 (n,) each.
        facts: What else a reader needs.
    """
    tally, result = performance.tally, performance.result
    scores, labels = part
    return Outcome(
        input=performance.sent,
        predictions=tally.predictions,
        alerts=len(tally.alerts),
        dead_letters=tally.dead_letters.total(),
        duplicates=tally.duplicates,
        shed=tally.shed,
        fallbacks=tally.fallbacks.total(),
        test_scores=scores,
        test_labels=labels,
        latency_ms=np.array(tally.latencies_ms, np.float64),
        scored_time_ms=np.array(tally.scored_times_ms, np.int64),
        is_fallback=np.array(tally.is_fallback, np.bool_),
        started_ms=result.started_ms,
        ended_ms=result.ended_ms,
        threshold=stage.settings.alerts.threshold,
        facts=facts,
    )


def test_part(tally: Tally, frame: pd.DataFrame, from_ms: int) -> tuple[FloatArray, FloatArray]:
    """Scores and labels of what the model scored and was not trained on, float64 (m,) each."""
    is_model = ~np.array(tally.is_fallback, np.bool_)
    at: npt.NDArray[np.intp] = np.flatnonzero(
        is_model & (np.array(tally.event_times_ms, np.int64) >= from_ms)
    )
    label_of = dict(zip(frame["transaction_id"], frame["is_fraud"].tolist(), strict=True))
    rows = at.tolist()
    labels = np.array([label_of[tally.event_ids[row]] for row in rows], np.float64)
    return np.array(tally.scores, np.float64)[at], labels


def facts(
    model: Model, stage: Stage, performance: Performance, frame: pd.DataFrame
) -> dict[str, str]:
    """What a reader needs to judge the run by."""
    tally, result, plan = performance.tally, performance.result, performance.plan
    times_ms = frame["event_time_ms"]
    days = (times_ms.iloc[-1] - times_ms.iloc[0]) / DAY_MS
    return {
        "data": f"{len(frame):,} card transactions of {days:.0f} days",
        "added": plan.content.added,
        "replay": f"{days * 86_400 / plan.seconds:,.0f} times faster than life; the rate rises "
        f"for the first {plan.ramp_s:g} s, which count in the latency",
        "model": _model_fact(model, stage),
        "outage": _outage_fact(performance),
        "fallbacks": _counts(tally.fallbacks),
        "dead letters": _counts(tally.dead_letters),
        "repeated outputs": f"{tally.repeats:,} dropped",
        "Flink": f"{result.checkpoints} checkpoints, {result.restarts} restarts",
        "machine": f"{os.cpu_count()} cores, {platform.machine()}; Kafka, Flink, model server and "
        "load generator share them",
        "versions": f"Python {platform.python_version()}, Flink {version('apache-flink')}, "
        f"XGBoost {version('xgboost-cpu')}",
    }


def _model_fact(model: Model, stage: Stage) -> str:
    measured = model.metrics["average_precision"]
    where = "inside the operator" if stage.server is None else "in the model server"
    text = f"{stage.settings.model.name}, version {model.version}, {where}"
    return text if measured is None else f"{text}; average precision offline {measured:.3f}"


def _outage_fact(performance: Performance) -> str:
    outages_ms = performance.result.outages_ms
    if not outages_ms:
        return "none"
    took_s = sum(until - begun for begun, until in outages_ms) / 1_000
    return (
        f"model server stopped after {performance.plan.outage_at:.0%} of the input, "
        f"started again {performance.plan.outage_s:g} s later, {took_s:.1f} s without it"
    )


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in sorted(counts.items())) or "none"


def summary(outcome: Outcome) -> dict[str, str]:
    """What the terminal shows at the end."""
    found = numbers(outcome)
    return {
        "input records": f"{found['input']:,}",
        "predictions": f"{found['predictions']:,}",
        "dead letters": f"{found['dead_letters']:,}",
        "duplicates": f"{found['duplicates']:,}",
        "shed": f"{found['shed']:,}",
        "unaccounted for": f"{found['unaccounted']:,}",
        "alerts": f"{found['alerts']:,}",
        "fallbacks": f"{found['fallbacks']:,}",
        "latency": f"p50 {_text(found['p50_ms'], ',.0f')} ms, "
        f"p99 {_text(found['p99_ms'], ',.0f')} ms",
        "throughput": f"{_text(found['records_per_s'], ',.0f')} records/s",
        "average precision": f"{_text(found['average_precision'], '.3f')} over "
        f"{found['test_records']:,} test records, base rate {_text(found['base_rate'], '.3f')}",
        "at the threshold": f"precision {_text(found['precision_at_threshold'], '.3f')}, "
        f"recall {_text(found['recall_at_threshold'], '.3f')}",
    }


def _text(value: float | None, form: str) -> str:
    return "none" if value is None else f"{value:{form}}"
