"""`streamscore demo-iot`: anomalies of thousands of machines on this machine, data to report.

Runs of a pump, a forest trained on the one without an anomaly, a Kafka broker, a Flink job with the
model in its operator, and the runs told again as thousands of machines. It works below
``build/demo-iot``; what it starts, it stops.
"""

from __future__ import annotations

import shutil
import time
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from jobs import settings
from jobs.console import console, facts_table
from jobs.demo import model as demo_model
from jobs.demo.iot import evaluation, result, runs
from jobs.demo.iot.evaluation import Measured
from jobs.demo.iot.fleet import Faults, Fleet
from jobs.demo.iot.runs import Runs
from jobs.demo.live import LiveView
from jobs.demo.model import Model
from jobs.demo.outcome import Outcome
from jobs.demo.run import Performance, Plan, Stage
from jobs.demo.staging import linger, start_broker, start_job
from jobs.demo.steps import alone, parts, step
from jobs.environment import BUILD, ROOT
from jobs.settings import Settings
from model_server.repository import find_version

CONFIG = ROOT / "conf" / "iot.yaml"
DEMO = BUILD / "demo-iot"
RAMP_S = 5.0


@dataclass(frozen=True, slots=True)
class IotOptions:
    """What to show.

    Attributes:
        machines: How many.
        event_seconds: How much of their time is told; a reading a second each.
        seconds: How long the replay takes.
        live: Draw a panel where the terminal can, else print lines.
        keep: Leave everything running after the report until Ctrl-C.
        seed: Of the machines and their faults.
    """

    machines: int = 2_000
    event_seconds: int = 1_000
    seconds: float = 180.0
    live: bool = True
    keep: bool = False
    seed: int = 1


def run(options: IotOptions) -> Outcome:
    """Run the whole demo; everything it started has ended when it returns or raises.

    Writes ``report.json`` and ``report.html`` below ``build/demo-iot``.

    Raises:
        NotReadyError: something it needs is missing or does not start, or another demo runs.
        JobError: the job failed or stands still.
        KeyboardInterrupt: Ctrl-C, SIGTERM or SIGHUP.
    """
    begun_s = time.monotonic()
    with alone(DEMO) as started:
        found = step("data", lambda _: runs.load(options.seed), _data_text)
        chosen = settings.load(CONFIG, {"model.path": str(DEMO / "models")})
        model = _model(chosen, options, found)
        measured = _evaluation(chosen, model, found)
        stage = _stage(model, started)
        fleet = _fleet(options, found)
        performance = _perform(options, stage, fleet)
        outcome = result.report(DEMO, stage, performance, fleet, model, measured)
        console.print(facts_table("streamscore demo-iot", result.summary(outcome, measured)))
        console.print(f"report: {DEMO / 'report.html'}", soft_wrap=True)
        console.print(f"the whole demo took {time.monotonic() - begun_s:.0f} s\n")
        if options.keep:
            linger(stage)
    return outcome


def _data_text(found: Runs) -> str:
    where = "" if found.source == "SKAB" else f" (no {runs.archive()})"
    return (
        f"{found.source}{where}: {len(found.labelled)} runs with an anomaly, one without: "
        f"{sum(map(len, found.labelled)) + len(found.normal):,} readings"
    )


def _model(chosen: Settings, options: IotOptions, found: Runs) -> Model:
    stamp: dict[str, Any] = {
        "source": found.source,
        "seed": 0 if found.source == "SKAB" else options.seed,
        "config_hash": chosen.features_hash,
        "training": chosen.training.model_dump(mode="json"),
    }
    return step(
        "model",
        lambda tell: (
            demo_model.stored(chosen, DEMO, stamp)
            or demo_model.train(chosen, DEMO, stamp, evaluation.training_frame(found), parts(tell))
        ),
        _model_text,
    )


def _model_text(model: Model) -> str:
    rows, highest = model.metrics["normal_rows"], model.metrics["normal_scores"]["0.99"]
    return f"version {model.version}, of {rows:,} normal windows, 99 % of them below {highest:.3f}"


def _evaluation(chosen: Settings, model: Model, found: Runs) -> Measured:
    place = find_version(chosen.model.path, chosen.model.name, model.version)
    return step(
        "evaluation",
        lambda _: evaluation.measure(chosen, evaluation.score(chosen, place.path, found.labelled)),
        lambda it: f"mean AUC {it.mean_auc:.3f} over {len(it.aucs)} {found.source} runs",
    )


def _stage(model: Model, started: ExitStack) -> Stage:
    """Start the broker and the job; ``started`` will stop them."""
    bootstrap = start_broker(DEMO, started)
    started.callback(shutil.rmtree, DEMO / "checkpoints", ignore_errors=True)
    chosen = settings.load(
        CONFIG,
        {
            "kafka.bootstrap_servers": bootstrap,
            "topics.partitions": 1,
            "model.path": str(DEMO / "models"),
            "model.version": model.version,
            "batch.window": "50ms",
            "batch.buckets": 1,
            "flink.checkpoint_interval": "10s",
            "flink.checkpoint_dir": str(DEMO / "checkpoints"),
        },
    )
    return Stage(chosen, start_job(chosen, started), None)


def _fleet(options: IotOptions, found: Runs) -> Fleet:
    # All of it is past: a reading of the future would be refused.
    start_ms = (int(time.time()) - options.event_seconds) * 1_000
    return step(
        "input",
        lambda _: Fleet(
            found,
            options.machines,
            options.event_seconds,
            start_ms,
            options.seed,
            faults=Faults(),
        ),
        lambda it: f"{it.events:,} readings of {it.machines:,} machines; {it.added}",
    )


def _perform(options: IotOptions, stage: Stage, fleet: Fleet) -> Performance:
    ramp_s = min(RAMP_S, options.seconds / 4)
    performance = Performance(stage, Plan(fleet, options.seconds, ramp_s, 0.0, 0.0))
    with LiveView(console, plain=not options.live) as view:
        performance.run(view)
    return performance
