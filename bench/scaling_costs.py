"""What an event costs at steady rates, by the CPU times of a TaskManager's threads."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from bench.cluster_lab import Writer, events
from bench.common import BenchError, say
from bench.lab import Place
from jobs import settings as job_settings
from jobs.cluster import submission
from jobs.cluster.plan import Costs, python_load
from jobs.cluster.standalone import StandaloneCluster
from jobs.running_job import RunningJob
from jobs.settings import Settings

FITTED = (1_000, 6_000)
CHECKED = (3_000, 9_000)
WARM_PER_S = 6_000
WARM_S = 20.0
_UTILIZATION = 0.6
_PYTHON = ("features by", "labels")
_TICKS = os.sysconf("SC_CLK_TCK")
_SETTLE_S = 5.0
_PRIMED_S = 300.0
_CHECKPOINT_S = 300.0
_POLL_S = 0.1
_WEIGHED = 10_000
"""Records of a topic whose bytes are looked at."""

Point = Mapping[str, float]
"""A second at a steady rate: ``python``, ``jvm``, ``compiler`` CPU seconds, and ``events``."""


@dataclass(frozen=True)
class Measured:
    """A job with so many keys.

    Attributes:
        keys: Cards.
        events: Written until the checkpoint.
        fitted: Points at ``FITTED``.
        checked: Points at ``CHECKED``; empty where only the fitted rates were met.
        checkpoint_s: Duration of a full checkpoint.
        checkpoint_bytes: Its size.
        batches_s: Micro-batches a second.
        stages: Of the job.
        columns: Features of the job.
        event_bytes: Of an event's record, key and value.
        prediction_bytes: Of a prediction's.
    """

    keys: int
    events: int
    fitted: Mapping[int, Point]
    checked: Mapping[int, Point]
    checkpoint_s: float
    checkpoint_bytes: int
    batches_s: float
    stages: int
    columns: int
    event_bytes: float
    prediction_bytes: float

    @property
    def python_us(self) -> float:
        """Of an event, microseconds."""
        return self._slope("python")

    @property
    def jvm_us(self) -> float:
        """Of an event, microseconds."""
        return self._slope("jvm")

    @property
    def batch_us(self) -> float:
        """Of a micro-batch beside its events', microseconds of Python."""
        low = self.fitted[FITTED[0]]
        rest = low["python"] - self.python_us * low["events"] / 1e6
        return max(0.0, 1e6 * rest / self.batches_s)

    def _slope(self, what: str) -> float:
        low, high = (self.fitted[rate] for rate in FITTED)
        return 1e6 * (high[what] - low[what]) / (high["events"] - low["events"])


def measure(at: Place, keys: int, seconds: float, *, is_checked: bool) -> Measured:
    """One TaskManager with one slot, so many cards, one rate after the other, a checkpoint.

    Raises:
        BenchError: the job does not keep up.
    """
    run = f"costs_{keys}"
    events_topic, labels = at.create(f"{run}_events", f"{run}_labels", partitions=1)
    topics = {"events": events_topic, "labels": labels, **at.create_outputs(run, partitions=1)}
    settings, overrides = job_of(at, run, topics, partitions=1, parallelism=1)
    cluster = StandaloneCluster(at.folder / f"cluster-{keys}")
    try:
        cluster.up(1, 1)
        package = submission.make_package(cluster, at.config, overrides)
        job = submission.submit_session(settings, package, cluster, progress=say)
        pid = cluster.running().processes["tm-0"].pid
        writer = Writer(settings, events(keys, seed=1, terminals=max(100, keys // 10)))
        scored = partial(_scored, at, topics["predictions"], job)
        _prime(writer, scored, keys)
        points = {
            rate: _at_rate(writer, scored, pid, rate, seconds)
            for rate in (FITTED + CHECKED if is_checked else FITTED)
        }
        took_s, size = full_checkpoint(job)
    finally:
        cluster.down()
    event_bytes, prediction_bytes = (
        _record_bytes(at, topics[name]) for name in ("events", "predictions")
    )
    at.topics.delete(topics.values())
    return Measured(
        keys=keys,
        events=writer.written,
        fitted={rate: points[rate] for rate in FITTED},
        checked={rate: points[rate] for rate in points if rate in CHECKED},
        checkpoint_s=took_s,
        checkpoint_bytes=size,
        batches_s=len(settings.schema_.stages) * 1_000 / settings.batch.window,
        stages=len(settings.schema_.stages),
        columns=len(settings.schema_.columns),
        event_bytes=event_bytes,
        prediction_bytes=prediction_bytes,
    )


def _record_bytes(at: Place, topic: str) -> float:
    """Mean bytes of a topic's first records, without what Kafka adds and compression takes away."""
    sizes = [
        len(message.key() or b"") + len(message.value() or b"")
        for message in islice(at.topics.read(topic), _WEIGHED)
    ]
    return sum(sizes) / len(sizes)


def job_of(
    at: Place, run: str, topics: Mapping[str, str], *, partitions: int, parallelism: int
) -> tuple[Settings, dict[str, Any]]:
    """A measurement's job: its settings, and what differs from the file."""
    overrides = {
        **at.job_overrides(run, topics),
        "topics.partitions": partitions,
        "batch.buckets": parallelism,
        "flink.parallelism": parallelism,
        "flink.checkpoint_interval": "1h",
        **at.overrides,
    }
    return job_settings.load(at.config, overrides), overrides


def _scored(at: Place, predictions: str, job: RunningJob) -> int:
    """Events so far, by the topic's end: Flink's metrics are as old as the last request for them.

    Raises:
        BenchError: the job does not run.
    """
    if (state := job.state()) != "RUNNING":
        raise BenchError(f"the job is {state}: {job.cause()}")
    return at.topics.size(predictions)


def _prime(writer: Writer, scored: Callable[[], int], keys: int) -> None:
    say("each card once")
    writer.write(keys)
    writer.flush()
    _wait_scored(writer, scored)
    say("the JVM compiles")
    with writer.at(WARM_PER_S):
        time.sleep(WARM_S)
    _wait_scored(writer, scored)


def _wait_scored(writer: Writer, scored: Callable[[], int]) -> None:
    deadline_s = time.monotonic() + _PRIMED_S
    while (left := writer.written - scored()) > 0:
        if time.monotonic() > deadline_s:
            raise BenchError(f"{left:,} events were not scored within {_PRIMED_S:.0f} s")
        time.sleep(_POLL_S)


def thread_seconds(pid: int) -> dict[str, float]:
    """CPU seconds of a process so far: ``python``, of the tasks that run it, and ``jvm``."""
    found = dict.fromkeys(("python", "jvm", "compiler"), 0.0)
    for folder in Path(f"/proc/{pid}/task").iterdir():
        try:
            name = (folder / "comm").read_text()
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        kind = "python" if name.startswith(_PYTHON) else "jvm"
        if name.startswith(("C1 ", "C2 ")):
            kind = "compiler"  # it ends
        found[kind] += (int(fields[11]) + int(fields[12])) / _TICKS
    return found


def _at_rate(
    writer: Writer, scored: Callable[[], int], pid: int, rate: int, seconds: float
) -> Point:
    with writer.at(rate):
        time.sleep(_SETTLE_S)
        before, count, start_s = thread_seconds(pid), scored(), time.monotonic()
        time.sleep(seconds)
        took_s = time.monotonic() - start_s
        spent = {name: after - before[name] for name, after in thread_seconds(pid).items()}
        spent["events"] = scored() - count
    point = {name: value / took_s for name, value in spent.items()}
    # A job that is starved has a backlog: its events are then not those of the rate.
    if not 0.9 * rate < point["events"] < 1.1 * rate:
        raise BenchError(
            f"{point['events']:,.0f} events/s were scored, {rate:,} written: the machine is "
            "too busy to tell a cost"
        )
    say(f"{rate:,}/s: " + ", ".join(f"{name} {value:,.3g}" for name, value in point.items()))
    return point


def full_checkpoint(job: RunningJob) -> tuple[float, int]:
    """Have a job take a full checkpoint; its duration in seconds, and its bytes.

    Raises:
        BenchError: none was complete in time.
    """
    path = f"/jobs/{job.job_id}/checkpoints"
    before = job.checkpoints_completed()
    job.rest.post(path, {"checkpointType": "FULL"})
    deadline_s = time.monotonic() + _CHECKPOINT_S
    while job.checkpoints_completed() == before:
        if time.monotonic() > deadline_s:
            raise BenchError(f"no checkpoint was complete within {_CHECKPOINT_S:.0f} s")
        time.sleep(_POLL_S)
    latest = job.rest.get(path)["latest"]["completed"]
    return latest["end_to_end_duration"] / 1e3, int(latest["state_size"])


def costs_of(found: Sequence[Measured], about: Mapping[str, Any]) -> Costs:
    """The unit costs."""
    first, last = found[0], found[-1]
    return Costs(
        python_us={one.keys: round(one.python_us, 2) for one in found},
        jvm_us={one.keys: round(one.jvm_us, 2) for one in found},
        batch_us=round(first.batch_us, 1),
        event_bytes=round(first.event_bytes, 1),
        prediction_bytes=round(first.prediction_bytes, 1),
        state_bytes=round(last.checkpoint_bytes / last.events / last.stages, 1),
        checkpoint_bytes_s=round(last.checkpoint_bytes / max(last.checkpoint_s, 1e-3)),
        columns=first.columns,
        utilization=_UTILIZATION,
        measured=about,
    )


def modelled_cores(costs: Costs, one: Measured, point: Point) -> float:
    """Cores of Python at a point by the model of a plan."""
    return python_load(costs, costs.columns, point["events"], one.batches_s, one.keys)
