"""A job for the length of a test."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from jobs import runner
from jobs.flink_rest import JobError
from jobs.running_job import RunningJob
from jobs.settings import Settings
from tests.support.kafka import Record, Traffic
from tests.support.waiting import wait_until

_LAST_LABEL = b"this is no label"


@contextmanager
def running(settings: Settings, target: str | None = None) -> Iterator[RunningJob]:
    """Start a job, wait until it runs, cancel it at the end; its failure is shown in the test's.

    Args:
        settings: The job's.
        target: host:port of a cluster; none runs a mini-cluster in this process.
    """
    job = runner.start(settings, target)
    try:
        job.wait_running()
        yield job
    except AssertionError as exc:
        exc.add_note(f"the job is {job.state()}; its last failure: {job.failure() or 'none'}")
        raise
    finally:
        job.cancel()


def restarts(job: RunningJob) -> int:
    """How often the job was restarted."""
    found: list[dict[str, Any]] = []

    def known() -> bool:
        """A JobManager that has not yet looked for the job's metrics has none."""
        found[:] = job.rest.get(f"/jobs/{job.job_id}/metrics?get=numRestarts")
        return bool(found)

    wait_until(known, 60, "the JobManager's count of restarts")
    return int(found[0]["value"])


def wait_checkpoint(job: RunningJob) -> None:
    """Wait for a checkpoint that begins after this call.

    The second one to end from now on: one at a time is made, and the first may have begun before.
    """
    seen = job.checkpoints_completed()
    wait_until(lambda: job.checkpoints_completed() >= seen + 2, 60, "two checkpoints")


def learn(job: RunningJob, traffic: Traffic, labels: list[Record]) -> None:
    """Write labels and wait until the job knows them all.

    Each partition ends with a record that is no label: its dead letter says that all before it have
    left the window. The barriers of a checkpoint made after that push them through every channel.
    """
    traffic.send_labels(labels)
    partitions = traffic.settings.topics.partitions
    traffic.send_labels(Record(n, None, _LAST_LABEL) for n in range(partitions))
    topic = traffic.settings.topics.labels

    def ends_seen() -> bool:
        refused = [
            o for o in traffic.outputs["dead_letters"] if o.document["source"]["topic"] == topic
        ]
        return len({out.place[0] for out in refused if out.raw == _LAST_LABEL}) == partitions

    traffic.poll_until(ends_seen, 120)
    wait_checkpoint(job)


__all__ = ["JobError", "learn", "restarts", "running", "wait_checkpoint"]
