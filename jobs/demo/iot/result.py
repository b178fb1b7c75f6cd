"""What a run of the machines came to, and its report."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

from jobs.demo import report as demo_report
from jobs.demo.iot import pictures
from jobs.demo.iot.detection import found_of, test_part
from jobs.demo.iot.evaluation import Measured
from jobs.demo.iot.fleet import Fleet
from jobs.demo.model import Model
from jobs.demo.outcome import Outcome, numbers
from jobs.demo.result import outcome_of
from jobs.demo.run import Performance, Stage


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
