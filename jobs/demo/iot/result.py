"""What a run of the machines came to, and its report."""

from __future__ import annotations

import os
import platform
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from jobs.demo import report as demo_report
from jobs.demo.iot import pictures
from jobs.demo.iot.evaluation import Measured
from jobs.demo.iot.fleet import Fleet, Truth
from jobs.demo.model import Model
from jobs.demo.outcome import FloatArray, Outcome, numbers
from jobs.demo.result import outcome_of
from jobs.demo.run import Performance, Stage
from jobs.demo.watch import Tally


@dataclass(frozen=True, slots=True)
class Found:
    """What the episodes found of the machines' anomalies.

    Attributes:
        anomalies: How many there were, of which a part lies in the replay.
        found: Anomalies with an episode that opened while they lasted.
        delays_s: Of those, from the anomaly's start to the end of the window that opened it.
        others: Episodes that opened at no anomaly.
        silent: Machines told silent, of those that stopped.
        stopped: Machines that stopped sending for good.
    """

    anomalies: int
    found: int
    delays_s: list[float]
    others: int
    silent: int
    stopped: int


def report(
    folder: Path,
    stage: Stage,
    performance: Performance,
    fleet: Fleet,
    model: Model,
    measured: Measured,
) -> Outcome:
    """Write both files of the report; see ``jobs.demo.report.write``."""
    tally, truth = performance.tally, fleet.truth()
    found = found_of(tally.alert_records, truth)
    part = test_part(stage, tally, fleet, truth)
    known = facts(stage, performance, fleet, model)
    outcome = outcome_of(stage, performance, part, known)
    outcome = replace(outcome, scored_inputs=tally.scored_inputs)
    more = pictures.sections(stage.settings, tally, fleet, truth, found, measured)
    demo_report.write(outcome, folder, tally.alerts, more)
    return outcome


def test_part(
    stage: Stage, tally: Tally, fleet: Fleet, truth: Sequence[Truth]
) -> tuple[FloatArray, FloatArray]:
    """Scores and labels of the windows after each machine's warm-up, float64 (m,) each.

    A window is anomalous if it has a second of an anomaly.
    """
    rollup = stage.settings.rollup
    assert rollup is not None
    anomalies = {t.machine: t.anomalies_ms for t in truth}
    from_ms = fleet.start_ms + pictures.WARM_UP_WINDOWS * rollup.every
    scores, labels = [], []
    rows = zip(tally.keys, tally.event_times_ms, tally.scores, strict=True)
    for machine, end_ms, score in rows:
        if end_ms > from_ms:
            scores.append(score)
            spans = anomalies[machine]
            labels.append(any(a < end_ms and b > end_ms - rollup.every for a, b in spans))
    return np.array(scores, np.float64), np.array(labels, np.float64)


def found_of(alerts: Sequence[Mapping[str, Any]], truth: Sequence[Truth]) -> Found:
    """Put the episodes beside what is known of the machines."""
    opened: dict[str, list[int]] = defaultdict(list)
    for alert in alerts:
        if alert.get("kind") == "scores" and alert["state"] == "open":
            opened[alert["entity"]["value"]].append(alert["opened_ms"])
    silent = {_machine(alert) for alert in alerts if alert.get("kind") == "silent"}
    delays_s, anomalies, hits = [], 0, 0
    for one in truth:
        for begun_ms, ended_ms in one.anomalies_ms:
            anomalies += 1
            inside = [t for t in opened[one.machine] if begun_ms < t <= ended_ms + 10_000]
            hits += len(inside)
            delays_s += [(min(inside) - begun_ms) / 1_000] if inside else []
    stopped = {t.machine for t in truth if t.silent_from_ms is not None}
    return Found(
        anomalies=anomalies,
        found=len(delays_s),
        delays_s=delays_s,
        others=sum(map(len, opened.values())) - hits,
        silent=len(silent & stopped),
        stopped=len(stopped),
    )


def _machine(alert: Mapping[str, Any]) -> str:
    return str(alert["entity"]["value"] if "entity" in alert else alert["key"])


def facts(stage: Stage, performance: Performance, fleet: Fleet, model: Model) -> dict[str, str]:
    """What a reader needs to judge the run by."""
    tally, result, plan = performance.tally, performance.result, performance.plan
    label = "" if fleet.source == "SKAB" else ", SYNTHETIC: the figures say nothing of real pumps"
    return {
        "data": f"{fleet.source}{label}",
        "machines": f"{fleet.machines:,}, {fleet.seconds:,} s of each",
        "added": fleet.added,
        "replay": f"{fleet.seconds / plan.seconds:.1f} times faster than life",
        "model": f"{stage.settings.model.name}, version {model.version}, in the operator; "
        "Isolation Forest as ONNX",
        "dead letters": _counts(tally.dead_letters),
        "repeated outputs": f"{tally.repeats:,} dropped",
        "Flink": f"{result.checkpoints} checkpoints, {result.restarts} restarts",
        "machine": f"{os.cpu_count()} cores, {platform.machine()}; Kafka, Flink and load "
        "generator share them",
        "versions": f"Python {platform.python_version()}, Flink {version('apache-flink')}, "
        f"ONNX Runtime {version('onnxruntime')}",
    }


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in sorted(counts.items())) or "none"


def summary(outcome: Outcome, measured: Measured) -> dict[str, str]:
    """What the terminal shows at the end."""
    found = numbers(outcome)
    at = measured.at_threshold
    seen = [delay for delay in measured.delays_s if delay is not None]
    return {
        "input records": f"{found['input']:,}",
        "in scored windows": f"{outcome.scored:,} in {found['predictions']:,} windows",
        "dead letters": f"{found['dead_letters']:,}",
        "duplicates": f"{found['duplicates']:,}",
        "unaccounted for": f"{found['unaccounted']:,}",
        "alerts": f"{found['alerts']:,}",
        "latency": f"p50 {found['p50_ms']:,.0f} ms, p99 {found['p99_ms']:,.0f} ms from a window's "
        "newest reading to its score in Kafka",
        "evaluation": f"mean AUC {measured.mean_auc:.3f}, F1 {at.f1:.2f}, false alarms "
        f"{at.far:.1%}, missed {at.mar:.1%}",
        "seconds to an alert": f"median {statistics.median(seen):.0f}, {len(seen)} of "
        f"{len(measured.aucs)} anomalies found",
    }
