"""What more TaskManagers and slots bring on one machine: predictions/s of a backlog."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bench.cluster_lab import Writer, events
from bench.common import BenchError, growth_rate, say
from bench.lab import Place
from bench.scaling_costs import job_of, thread_seconds
from bench.watching import watch
from jobs.cluster import submission
from jobs.cluster.standalone import StandaloneCluster
from jobs.running_job import RunningJob

KEYS = 10_000
_PARTITIONS = 4
_ENOUGH = 0.98
"""Of the records: the end is a batch's or a partition's alone."""
_WARM = 0.4


@dataclass(frozen=True)
class Backlog:
    """Events that wait.

    Attributes:
        topics: Those of the events and the labels, by the settings' names.
        records: How many events.
    """

    topics: Mapping[str, str]
    records: int


@dataclass(frozen=True)
class Throughput:
    """A cluster's.

    Attributes:
        task_managers: How many.
        slots: Of each.
        per_s: Predictions a second.
        python_us: CPU time of Python for an event, microseconds.
        keys: Cards.
    """

    task_managers: int
    slots: int
    per_s: float
    python_us: float
    keys: int = KEYS


def clusters_of(*, quick: bool) -> Sequence[tuple[int, int]]:
    """TaskManagers and slots of each."""
    return [(1, 1), (2, 1)] if quick else [(1, 1), (1, 2), (2, 1)]


class _Job:
    """A job on a cluster as ``watch`` wants it."""

    def __init__(self, name: str, job: RunningJob) -> None:
        self.name, self._job = name, job

    def check(self) -> None:
        if (state := self._job.state()) != "RUNNING":
            raise BenchError(f"{self.name} is {state}: {self._job.cause()}")


def backlog(at: Place, records: int) -> Backlog:
    """Write the events that every cluster reads."""
    events_topic, labels = at.create("backlog_events", "backlog_labels", partitions=_PARTITIONS)
    topics = {"events": events_topic, "labels": labels}
    settings, _ = job_of(at, "backlog", topics, partitions=_PARTITIONS, parallelism=1)
    say(f"writing a backlog of {records:,} events")
    writer = Writer(settings, events(KEYS, seed=2))
    writer.write(records)
    writer.flush()
    return Backlog(topics, records)


def throughput(at: Place, task_managers: int, slots: int, given: Backlog) -> Throughput:
    """A job on so many TaskManagers meets a backlog."""
    run = f"{task_managers}tm_{slots}slots"
    say(f"[bold]{run}[/]")
    parallelism, records = task_managers * slots, given.records
    outputs = at.create_outputs(run, partitions=_PARTITIONS)
    settings, overrides = job_of(
        at, run, {**outputs, **given.topics}, partitions=_PARTITIONS, parallelism=parallelism
    )
    cluster = StandaloneCluster(at.folder / f"cluster-{run}")
    try:
        cluster.up(task_managers, slots)
        package = submission.make_package(cluster, at.config, overrides)
        job = submission.submit_session(settings, package, cluster, progress=say)
        state = cluster.running()
        topic = outputs["predictions"]
        jobs = [_Job(run, job)]
        samples = watch(at.topics.size, topic, records, jobs, lambda n, _: n >= _ENOUGH * records)
        pids = [state.processes[name].pid for name in state.task_managers]
        python_s = sum(thread_seconds(pid)["python"] for pid in pids)
        python_us = 1e6 * python_s / at.topics.size(topic)
    finally:
        cluster.down()
    at.topics.delete(outputs.values())
    return Throughput(task_managers, slots, growth_rate(samples, _WARM).per_s, python_us)
