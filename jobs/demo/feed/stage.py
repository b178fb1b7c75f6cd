"""A feed on this machine: broker, model server, ranking job and gateway, with a log as its history.

The demo and ``bench/learning.py`` play on it.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs import kafka_topics, ranking_data, ranking_training, settings
from jobs.demo import steps
from jobs.demo.feed import topics
from jobs.demo.feed.crowd import Crowd, Visit
from jobs.demo.model_process import ModelProcess, ServerProcess
from jobs.environment import BUILD, ROOT
from jobs.flink_rest import JobError
from jobs.running_job import RunningJob
from jobs.settings import Settings
from jobs.training import Trained
from udfs.ranking.log import PurchaseLog

__all__ = ["CONFIG", "Stage", "first_version", "open_stage"]

CONFIG = ROOT / "conf" / "feed.yaml"
_WAIT_S = 300.0
_WARM_S = 120.0
_COUNTED = ("labels", "outside", "elsewhere", "unmatched", "late")
_LIMITS = {"gateway.deadline": "500ms", "model.deadline": "250ms"}
"""Wider than a feed's: broker, job, servers and visitors share the cores of this machine."""


@dataclass(frozen=True)
class Stage:
    """What runs.

    Attributes:
        settings: The job's.
        job: The job.
        server: The model server.
        gateway: The gateway.
        beside: Asks what is not part of the replay.
    """

    settings: Settings
    job: RunningJob
    server: ModelProcess
    gateway: ServerProcess
    beside: Crowd

    @property
    def url(self) -> str:
        """The gateway's."""
        return self.beside.url

    def count(self, name: str) -> int:
        """One of the job's counters."""
        return self.job.counts((name,)).get(name, 0)

    def wait(self, done: Callable[[], bool], what: str, tell: steps.Tell) -> float:
        """Wait for something; returns the seconds it took.

        Raises:
            JobError: it does not come within five minutes.
        """
        begun_s = time.monotonic()
        while not done():
            waited_s = time.monotonic() - begun_s
            if waited_s > _WAIT_S:
                raise JobError(f"{what} did not come within {_WAIT_S:.0f} s")
            tell(f"{what}, {waited_s:.0f} s")
            time.sleep(0.5)
        return time.monotonic() - begun_s

    def remember(self, past: PurchaseLog) -> None:
        """Write a log's purchases and wait until the job has them all."""

        def feed(tell: steps.Tell) -> int:
            count = topics.write_history(self.settings, past)
            self.wait(lambda: self.count("interactions") >= count, "the history", tell)
            return count

        steps.step("history", feed, lambda count: f"{count:,} purchases make the users' state")

    def warm_up(self, users: Sequence[str], time_ms: int) -> None:
        """Ask for some users until all are answered by the model, or two minutes have passed.

        A JVM and a model server are slow at first, which is not what is to be shown.
        """
        some = [Visit(user, time_ms, (), ()) for user in users]

        def ask(tell: steps.Tell) -> int:
            begun_s, answers = time.monotonic(), self.beside.answers
            while time.monotonic() - begun_s < _WARM_S:
                self.beside.run(some, 1.0)
                if all(one.by == "model" for one in answers[-len(some) :]):
                    break
                tell(f"warm-up, {len(answers)} requests")
            return len(answers)

        steps.step("warm-up", ask, lambda count: f"{count} requests, the last ones by the model")

    def join_all(self, time_ms: int, linked: int, tell: steps.Tell) -> int:
        """End the windows of all requests; returns how many interactions the join has counted.

        Args:
            time_ms: Event time of a request that is later than their windows.
            linked: How many interactions name a request.
            tell: Shown while it waits.
        """
        self.beside.run([Visit("closing", time_ms, (), ())], 0.0)

        def joined() -> int:
            return sum(self.count(f"feedback_{name}") for name in _COUNTED)

        with suppress(JobError):
            self.wait(lambda: joined() >= linked, "the feedback", tell)
        return joined()

    def answers_with(self, version: int, time_ms: int) -> bool:
        """Whether job and model server have both taken a version, by asking at an event time.

        The job changes over between two batches, so it must be asked something.
        """
        self.beside.run([Visit("nobody", time_ms, (), ())], 0.0)
        is_served = self.beside.answers[-1].version == version
        return is_served and self.count("item_version") >= version


def first_version(
    folder: Path,
    data: ranking_data.TrainingData,
    live_ms: int,
    changes: dict[str, Any] | None = None,
) -> Trained:
    """Train a version on what was before an event time, into an empty folder of models."""
    shutil.rmtree(folder / "models", ignore_errors=True)
    chosen = settings.load(CONFIG, {"model.path": str(folder / "models"), **(changes or {})})
    past = ranking_data.TrainingData(data.log.before(live_ms), data.source)
    return steps.step(
        "model",
        lambda tell: ranking_training.train(chosen, past, steps.parts(tell)),
        lambda it: f"version {it.version.version}, trained on what was before",
    )


def open_stage(folder: Path, started: ExitStack, changes: dict[str, Any] | None = None) -> Stage:
    """Start everything before the models in a folder; ``started`` will stop it."""
    started.callback(shutil.rmtree, folder / "checkpoints", ignore_errors=True)
    bootstrap = steps.step(
        "Kafka", lambda _: steps.broker(folder / "stack", started), lambda at: f"fresh, at {at}"
    )
    logs = BUILD / "logs"
    server = ModelProcess(folder / "models", "feed", None, logs / "feed-model-server.log")
    steps.step(
        "model server",
        lambda _: started.enter_context(server),
        lambda it: f"at {it.address}",
    )
    changes = _changes(folder, bootstrap, server) | (changes or {})
    chosen = settings.load(CONFIG, changes)
    _make_topics(chosen)
    job = steps.step("Flink job", lambda tell: steps.job(chosen, started, tell), steps.job_text)
    gateway = _gateway(changes, logs / "feed-gateway.log")
    steps.step(
        "gateway",
        lambda _: started.enter_context(gateway),
        lambda it: f"http://{it.address}/",
    )
    beside = Crowd(f"http://{gateway.address}", time.monotonic())
    return Stage(chosen, job, server, gateway, beside)


def _changes(folder: Path, bootstrap: str, server: ModelProcess) -> dict[str, Any]:
    return _LIMITS | {
        "kafka.bootstrap_servers": bootstrap,
        # One partition keeps the order of time across users, too.
        "topics.partitions": 1,
        "model.path": str(folder / "models"),
        "model.server": server.address,
        "batch.buckets": 1,
        "feedback.lateness": "1d",  # event time runs thousands of times faster than the clock
        "flink.checkpoint_interval": "10s",
        "flink.checkpoint_dir": str(folder / "checkpoints"),
    }


def _gateway(changes: dict[str, Any], log: Path) -> ServerProcess:
    arguments = ["jobs.cli", "gateway", str(CONFIG), "--set", "gateway.port={port}"]
    for name, value in changes.items():
        arguments += ["--set", f"{name}={value}"]
    return ServerProcess("the gateway", arguments, log)


def _make_topics(chosen: Settings) -> None:
    bootstrap = chosen.kafka.bootstrap_servers
    kafka_topics.create_topics(bootstrap, kafka_topics.partitions_of(chosen.topics))
    assert chosen.topics.popularity is not None
    compacted = {chosen.topics.popularity: chosen.topics.partitions}
    kafka_topics.create_topics(bootstrap, compacted, {"cleanup.policy": "compact"})
