"""A new job runs for some seconds beside the old one and writes nothing.

So its processes have started their Python, imported, loaded the model and compiled before the old
job stops; and a job that fails does so here, where nobody waits for it.
"""

from __future__ import annotations

import time
from collections.abc import Set
from contextlib import suppress

from jobs.cluster import savepoints
from jobs.cluster.client import FlinkRunClient
from jobs.flink_rest import JobError
from jobs.jars import Progress
from jobs.running_job import RunningJob

_RUNNING_S = 300.0
_WORK_S = 3.0
"""How long it works on events: the JVM compiles what is used most meanwhile."""
_QUIET_S = 8.0
"""How long events are waited for: there may be none."""
_POLL_S = 0.2


def rehearse(
    client: FlinkRunClient,
    old: RunningJob,
    folder: str | None,
    parallelism: int,
    hosts: Set[str],
    progress: Progress,
) -> None:
    """Run the new job without outputs beside the old one, and end it.

    Args:
        client: Has built the new job.
        old: The running one.
        folder: Where a savepoint of it goes that the rehearsal begins with, and that is removed
            afterwards; none begins with the newest events and no state.
        parallelism: Of the rehearsal.
        hosts: TaskManagers that may run it; if others do, it is ended at once.
        progress: Told if that is so.

    Raises:
        JobError: the new job fails.
    """
    savepoint = savepoints.take(old, folder, native=True) if folder else ""
    try:
        job = RunningJob(client.rehearse(savepoint, parallelism), old.rest)
        try:
            job.wait_running(_RUNNING_S)
            if job.task_managers() <= hosts:
                _work(job)
            else:
                progress("no rehearsal: the cluster gave it TaskManagers with other code")
        finally:
            job.cancel()
    except JobError as exc:
        raise JobError(f"the new job fails in its rehearsal, the old goes on: {exc}") from exc
    finally:
        if savepoint:
            with suppress(JobError):
                savepoints.dispose(old.rest, savepoint)


def _work(job: RunningJob) -> None:
    """Let it read for some seconds.

    Raises:
        JobError: it ended.
    """
    start_s, first_s = time.monotonic(), None
    while True:
        state = job.state()
        if state != "RUNNING":
            raise JobError(f"it is {state}: {job.cause()}")
        now_s = time.monotonic()
        if first_s is None and job.counts(["events"])["events"]:
            first_s = now_s
        if now_s - (first_s or start_s) > (_QUIET_S if first_s is None else _WORK_S):
            return
        time.sleep(_POLL_S)
