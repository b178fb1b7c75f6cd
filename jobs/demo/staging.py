"""What the demos of scoring jobs share: a fresh broker, topics, the job on it."""

from __future__ import annotations

import time
from contextlib import ExitStack, suppress
from pathlib import Path

from jobs import kafka_topics
from jobs.console import console
from jobs.demo import steps
from jobs.demo.run import Stage
from jobs.demo.watch import output_kinds
from jobs.running_job import RunningJob
from jobs.settings import Settings


def start_broker(folder: Path, started: ExitStack) -> str:
    """A fresh broker below a demo's folder; ``started`` will stop it. Returns host:port."""
    return steps.step(
        "Kafka", lambda _: steps.broker(folder / "stack", started), lambda at: f"fresh, at {at}"
    )


def start_job(chosen: Settings, started: ExitStack) -> RunningJob:
    """Make the topics and start the job on a mini-cluster; ``started`` will cancel it."""
    steps.step("topics", lambda _: _topics(chosen), lambda names: ", ".join(names))
    return steps.step("Flink job", lambda tell: steps.job(chosen, started, tell), steps.job_text)


def _topics(chosen: Settings) -> list[str]:
    names = kafka_topics.partitions_of(chosen.topics)
    bootstrap = chosen.kafka.bootstrap_servers
    outputs = {name: names[name] for name in output_kinds(chosen.topics)}
    # A prediction's time is that of its arrival in Kafka, by the broker's clock.
    kafka_topics.create_topics(bootstrap, outputs, {"message.timestamp.type": "LogAppendTime"})
    kafka_topics.create_topics(bootstrap, names)
    return list(names)


def linger(stage: Stage) -> None:
    """Leave everything running until Ctrl-C."""
    at = stage.settings.kafka.bootstrap_servers
    console.print(f"\nKafka at {at} and Flink at {stage.job.rest.url} run on; end with Ctrl-C")
    with suppress(KeyboardInterrupt):
        while True:
            time.sleep(1.0)
