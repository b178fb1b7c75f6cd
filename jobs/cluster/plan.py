"""``streamscore plan``: what a rate takes by measured unit costs, and which limit comes first."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from jobs.environment import ROOT, NotReadyError
from jobs.settings import Settings
from udfs.features.keyed import KeyedStage

COSTS = ROOT / "conf" / "costs.yaml"
_MIB = 1024**2


@dataclass(frozen=True)
class Costs:
    """Measured unit costs; ``bench/scaling.py`` writes them, with the machine they are of.

    Attributes:
        python_us: Python's time of an event with the features that were measured, in microseconds,
            by the number of keys; one TaskManager's Python runs on one core.
        jvm_us: The JVM's time of an event beside Python's threads, by the number of keys.
        batch_us: Python's time of a micro-batch beside its events'.
        event_bytes: Of an event's record in Kafka.
        prediction_bytes: Of its prediction.
        state_bytes: Of a kept entry of a key's history, in a checkpoint.
        checkpoint_bytes_s: How fast a task writes state.
        columns: How many features the job had that was measured.
        utilization: Share of a core that is planned for: the rest catches up after a failure.
        measured: Where and how.
    """

    python_us: Mapping[int, float]
    jvm_us: Mapping[int, float]
    batch_us: float
    event_bytes: float
    prediction_bytes: float
    state_bytes: float
    checkpoint_bytes_s: float
    columns: int
    utilization: float
    measured: Mapping[str, Any]

    @classmethod
    def read(cls, path: Path = COSTS) -> Costs:
        """The costs of a file.

        Raises:
            NotReadyError: nobody has measured them here.
        """
        if not path.is_file():
            raise NotReadyError(
                f"no unit costs in {path}", "measure them: python -m bench.scaling --write"
            )
        return cls(**yaml.safe_load(path.read_text(encoding="utf-8")))

    def python_us_at(self, keys: int) -> float:
        """Python's time of an event with so many keys: more of them are in no cache.

        Between those measured it grows by the logarithm of the keys; beyond them it does not.
        """
        return _between(self.python_us, keys)

    def jvm_us_at(self, keys: int) -> float:
        """The same of the JVM, whose garbage collector walks over more of them."""
        return _between(self.jvm_us, keys)


def _between(measured: Mapping[int, float], keys: int) -> float:
    numbers = sorted(measured)
    times = [measured[n] for n in numbers]
    return float(np.interp(math.log(max(1, keys)), [math.log(n) for n in numbers], times))


@dataclass(frozen=True)
class Line:
    """One figure of a plan.

    Attributes:
        what: E.g. ``TaskManagers``.
        value: With its unit.
        reason: How it comes about.
    """

    what: str
    value: str
    reason: str


def python_load(costs: Costs, columns: int, rate: float, batches_s: float, keys: int) -> float:
    """Cores of Python that a rate takes.

    Args:
        costs: Unit costs.
        columns: Features of the job.
        rate: Events a second.
        batches_s: Micro-batches a second, of all stages.
        keys: Of the first stage.
    """
    an_event_us = costs.python_us_at(keys) * columns / costs.columns
    return (rate * an_event_us + batches_s * costs.batch_us) / 1e6


def plan(settings: Settings, rate: float, keys: int, per_key: float, costs: Costs) -> list[Line]:
    """What a job takes.

    Args:
        settings: The job's.
        rate: Events a second.
        keys: Of each stage.
        per_key: Events that a key's history holds.
        costs: Unit costs.
    """
    schema, batch = settings.schema_, settings.batch
    stages, columns = len(schema.stages), len(schema.columns)
    batches_s = stages * min(rate, batch.buckets * 1_000 / batch.window)
    python = python_load(costs, columns, rate, batches_s, keys)
    tasks = max(1, math.ceil(python / costs.utilization))
    jvm = rate * costs.jvm_us_at(keys) / 1e6
    cores = tasks + math.ceil(jvm / costs.utilization)
    words = sum(KeyedStage(schema, key)._events.kept_words for key in schema.stages)
    entries = keys * per_key
    memory = entries * 8 * words
    checkpoint = entries * stages * costs.state_bytes
    checkpoint_s = checkpoint / tasks / costs.checkpoint_bytes_s
    network = rate * (costs.event_bytes + costs.prediction_bytes)
    return [
        Line(
            "TaskManagers",
            f"{tasks} of one slot",
            f"Python takes {python:.2f} cores, {costs.utilization:.0%} of one is planned for, and "
            "a TaskManager's Python has one",
        ),
        Line("cores", f"{cores}", f"a core per TaskManager's Python, and {jvm:.2f} for the JVMs"),
        Line(
            "memory",
            f"{memory / _MIB / tasks + 1_536:,.0f} MiB per TaskManager",
            f"{entries:,.0f} kept events of {8 * words} bytes over all stages, beside 1,536 MiB "
            "of Flink's own",
        ),
        Line(
            "buckets",
            f"at least {tasks}",
            f"batch.buckets is {batch.buckets} and bounds the parallelism; it never changes",
        ),
        Line(
            "partitions",
            f"at least {tasks}",
            "each subtask of a source reads at least one",
        ),
        Line(
            "checkpoint",
            f"{checkpoint / _MIB:,.0f} MiB in {checkpoint_s:.1f} s",
            f"{costs.state_bytes:.0f} bytes a kept event and stage; "
            f"{costs.checkpoint_bytes_s / _MIB:.0f} MiB/s a task",
        ),
        Line(
            "network",
            f"{8 * network / 1e6:,.0f} Mbit/s to and from Kafka",
            f"{costs.event_bytes:.0f} bytes in, {costs.prediction_bytes:.0f} bytes out an event",
        ),
        Line("first limit", *_first_limit(settings, tasks, checkpoint_s)),
    ]


def _first_limit(settings: Settings, tasks: int, checkpoint_s: float) -> tuple[str, str]:
    if tasks > settings.batch.buckets:
        return "batch.buckets", f"{settings.batch.buckets} buckets feed no more than as many tasks"
    if tasks > settings.topics.partitions:
        return "topics.partitions", f"{settings.topics.partitions} partitions, {tasks} tasks"
    if checkpoint_s * 1_000 > settings.flink.checkpoint_interval / 2:
        return "checkpoints", "one takes more than half of flink.checkpoint_interval"
    if tasks > settings.flink.parallelism:
        return "flink.parallelism", f"it is {settings.flink.parallelism}, {tasks} are needed"
    return "Python's cores", "more rate takes more TaskManagers; nothing else is near its limit"
