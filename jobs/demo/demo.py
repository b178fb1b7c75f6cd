"""`streamscore demo`: everything on this machine, from the data to the report.

Data, a model trained on the first part of it, a Kafka broker, a model server, a Flink job, and the
history told again to that job. It works below ``build/demo``; what it starts, it stops.
"""

from __future__ import annotations

import shutil
import time
from contextlib import ExitStack
from dataclasses import dataclass

import pandas as pd

from jobs import settings
from jobs.console import console, facts_table
from jobs.demo import data as demo_data
from jobs.demo import model as demo_model
from jobs.demo import report
from jobs.demo import result as demo_result
from jobs.demo.live import LiveView
from jobs.demo.model import Model
from jobs.demo.model_process import ModelProcess
from jobs.demo.outcome import Outcome
from jobs.demo.run import Performance, Plan, Stage
from jobs.demo.script import Script, script
from jobs.demo.staging import linger, start_broker, start_job
from jobs.demo.steps import Tell, alone, parts, step
from jobs.environment import BUILD, ROOT
from jobs.settings import Settings

CONFIG = ROOT / "conf" / "fraud.yaml"
DEMO = BUILD / "demo"
RAMP_S = 3.0
OUTAGE_S = 5.0
OUTAGE_AT = 0.4


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """What to show.

    Attributes:
        size: Which demo data, a name in ``demo_data.SIZES``.
        seconds: How long the replay takes.
        live: Draw a panel where the terminal can, else print lines.
        embedded: Score inside the operator; then there is no server to be stopped.
        keep: Leave everything running after the report until Ctrl-C.
        limit: Only the first so many transactions; 0 takes all.
    """

    size: str = "small"
    seconds: float = 90.0
    live: bool = True
    embedded: bool = False
    keep: bool = False
    limit: int = 0

    @property
    def ramp_s(self) -> float:
        """How long the replay's rate rises."""
        return min(RAMP_S, self.seconds / 4)

    @property
    def outage_s(self) -> float:
        """How long the model server stays stopped."""
        return min(OUTAGE_S, self.seconds / 10)


def run(options: DemoOptions) -> Outcome:
    """Run the whole demo; everything it started has ended when it returns or raises.

    Writes ``report.json`` and ``report.html`` below ``build/demo``.

    Raises:
        NotReadyError: something it needs is missing or does not start, or another demo runs.
        JobError: the job failed or stands still.
        KeyboardInterrupt: Ctrl-C, SIGTERM or SIGHUP.
    """
    begun_s = time.monotonic()
    with alone(DEMO) as started:
        frame = _data(options)
        model = _model(options, frame)
        stage = _stage(options, model, started)
        performance = _perform(options, stage, _content(frame))
        outcome = _report(options, model, stage, performance, frame, begun_s)
        if options.keep:
            linger(stage)
    return outcome


def _data(options: DemoOptions) -> pd.DataFrame:
    def load(tell: Tell) -> pd.DataFrame:
        frame = demo_data.load(options.size, progress=parts(tell))
        return frame.head(options.limit) if options.limit else frame

    return step("data", load, lambda frame: _data_text(options, frame))


def _data_text(options: DemoOptions, frame: pd.DataFrame) -> str:
    days = (frame["event_time_ms"].iloc[-1] - frame["event_time_ms"].iloc[0]) / demo_data.DAY_MS
    part = ", the first of them" if options.limit else ""
    return f"{options.size}{part}: {len(frame):,} card transactions of {days:.0f} days"


def _model(options: DemoOptions, frame: pd.DataFrame) -> Model:
    chosen = settings.load(CONFIG, {"model.path": str(DEMO / "models")})
    stamp = demo_model.stamp(chosen, options.size, options.limit)

    def work(tell: Tell) -> Model:
        earlier = demo_model.stored(chosen, DEMO, stamp)
        return earlier or demo_model.train(chosen, DEMO, stamp, frame, parts(tell))

    return step("model", work, _model_text)


def _model_text(model: Model) -> str:
    score = model.metrics["average_precision"]
    measured = "no fraud to measure it by" if score is None else f"average precision {score:.3f}"
    return f"version {model.version}, {measured} on the last part of time"


def _stage(options: DemoOptions, model: Model, started: ExitStack) -> Stage:
    """Start the broker, the model server and the job; ``started`` will stop them."""
    bootstrap = start_broker(DEMO, started)
    started.callback(shutil.rmtree, DEMO / "checkpoints", ignore_errors=True)
    server = None if options.embedded else _server(model, started)
    chosen = _settings(model, bootstrap, server)
    return Stage(chosen, start_job(chosen, started), server)


def _server(model: Model, started: ExitStack) -> ModelProcess:
    log = BUILD / "logs" / "demo-model-server.log"
    server = ModelProcess(DEMO / "models", "fraud", model.version, log)
    return step(
        "model server",
        lambda _: started.enter_context(server),
        lambda it: f"at {it.address}",
    )


def _settings(model: Model, bootstrap: str, server: ModelProcess | None) -> Settings:
    return settings.load(
        CONFIG,
        ({} if server is None else {"model.server": server.address})
        | {
            "kafka.bootstrap_servers": bootstrap,
            # One partition keeps the order of time across cards, too: at this speed 10 ms are a
            # quarter of an hour of event time.
            "topics.partitions": 1,
            "model.path": str(DEMO / "models"),
            "model.version": model.version,
            "model.embedded": server is None,
            "batch.window": "10ms",
            "batch.buckets": 1,
            "flink.checkpoint_interval": "10s",
            "flink.checkpoint_dir": str(DEMO / "checkpoints"),
        },
    )


def _content(frame: pd.DataFrame) -> Script:
    return step(
        "input",
        lambda _: script(frame),
        lambda it: (
            f"{it.events:,} events ({it.duplicates:,} of them twice, {it.bad.total():,} bad) "
            f"and {it.labels:,} late labels"
        ),
    )


def _perform(options: DemoOptions, stage: Stage, content: Script) -> Performance:
    plan = Plan(content, options.seconds, options.ramp_s, OUTAGE_AT, options.outage_s)
    performance = Performance(stage, plan)
    with LiveView(console, plain=not options.live) as view:
        performance.run(view)
    return performance


def _report(
    options: DemoOptions,
    model: Model,
    stage: Stage,
    performance: Performance,
    frame: pd.DataFrame,
    begun_s: float,
) -> Outcome:
    facts = demo_result.facts(model, stage, performance, frame)
    outcome = demo_result.outcome(model, stage, performance, frame, facts)
    _, page = report.write(outcome, DEMO, performance.tally.alerts)
    console.print(facts_table("streamscore demo", demo_result.summary(outcome)))
    console.print(f"report: {page}", soft_wrap=True)
    console.print(f"the whole demo took {time.monotonic() - begun_s:.0f} s\n")
    console.print(demo_result.NEXT_STEPS, soft_wrap=True, highlight=False)
    return outcome
