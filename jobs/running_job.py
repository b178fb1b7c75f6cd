"""A submitted job: its state, counters and end, as Flink's REST API tells them."""

from __future__ import annotations

import time
import urllib.parse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from jobs.environment import as_url
from jobs.flink_rest import FlinkRest, JobError, NoAnswerError, Patience, cause_of

TERMINAL_STATES = frozenset({"FINISHED", "CANCELED", "FAILED", "SUSPENDED"})
_POLL_S = 0.1
_STALE_S = 10.0
"""The JobManager tells of a job what it found up to `web.refresh-interval`, 3 s, ago."""
_GONE_S = 10.0
"""How long a mini-cluster whose REST API is gone may take to say how the job ended."""


@dataclass(frozen=True)
class RunningJob:
    """A submitted job.

    Attributes:
        job_id: Flink's id, 32 hex digits.
        rest: The cluster it runs on.
        client: PyFlink's client of the job. A mini-cluster ends with its job and takes the REST
            API along; then only the client knows how the job ended.
    """

    job_id: str
    rest: FlinkRest
    client: Any = None

    def state(self) -> str:
        """Flink's word for the job's state, e.g. RUNNING.

        Raises:
            JobError: nobody can tell.
        """
        try:
            return str(self.rest.get(f"/jobs/{self.job_id}")["state"])
        except JobError:
            ended = self._ending()
            if ended is None:
                raise
            return ended.state

    def failure(self) -> str:
        """The stack trace of the last failure, empty if there was none.

        Raises:
            JobError: nobody can tell.
        """
        try:
            found = self.rest.get(f"/jobs/{self.job_id}/exceptions?maxExceptions=1")
        except JobError:
            ended = self._ending()
            if ended is None:
                raise
            return ended.stacktrace
        entries = found.get("exceptionHistory", {}).get("entries", [])
        return str(entries[0]["stacktrace"]) if entries else ""

    def cause(self) -> str:
        """One line that says why the job failed last."""
        return cause_of(self.failure())

    def _ending(self) -> _Ending | None:
        """How the job ended by its client, none if it did not."""
        if self.client is None:
            return None
        result = self.client.get_job_execution_result()
        deadline_s = time.monotonic() + _GONE_S
        while not result.done():
            if time.monotonic() > deadline_s:
                return None
            time.sleep(_POLL_S)
        return _ending_of(result)

    def restarts(self) -> int:
        """How often the job was restarted after a failure."""
        found = self.rest.get(f"/jobs/{self.job_id}/metrics?get=numRestarts")
        return int(found[0]["value"]) if found else 0

    def counts(self, names: Sequence[str]) -> dict[str, int]:
        """The sums of our operators' counters, by name; a restart sets them back to 0."""
        totals = dict.fromkeys(names, 0)
        for vertex in self.rest.get(f"/jobs/{self.job_id}")["vertices"]:
            path = f"/jobs/{self.job_id}/vertices/{vertex['id']}/subtasks/metrics"
            ids = [m["id"] for m in self.rest.get(path)]
            wanted = [i for i in ids if i.rpartition(".")[2] in totals]
            if wanted:
                query = urllib.parse.quote(",".join(wanted), safe=",")
                for metric in self.rest.get(f"{path}?agg=sum&get={query}"):
                    totals[metric["id"].rpartition(".")[2]] += int(metric["sum"])
        return totals

    def task_managers(self) -> set[str]:
        """The ids of those that run a task of it."""
        vertices = self.rest.get(f"/jobs/{self.job_id}")["vertices"]
        found = [self.rest.get(f"/jobs/{self.job_id}/vertices/{v['id']}") for v in vertices]
        return {subtask["taskmanager-id"] for vertex in found for subtask in vertex["subtasks"]}

    def checkpoints_completed(self) -> int:
        """How many checkpoints are complete."""
        return int(self.rest.get(f"/jobs/{self.job_id}/checkpoints")["counts"]["completed"])

    def wait(self, until: Callable[[str], bool], timeout_s: float) -> str:
        """Wait until the job's state is one that ``until`` accepts; returns that state.

        Raises:
            JobError: it ended otherwise, did not get there in time, or nobody can tell for half a
                minute.
        """
        deadline_s = time.monotonic() + timeout_s
        patience, state = Patience(), "unknown"
        while True:
            try:
                state = self.state()
                if until(state):
                    return state
                patience.answered()
                if state in TERMINAL_STATES:
                    raise JobError(f"the job ended as {state}: {self.cause()}")
            except NoAnswerError as exc:
                patience.missed(exc)
            if time.monotonic() > deadline_s:
                raise JobError(f"the job is still {state} after {timeout_s:.0f} s")
            time.sleep(_POLL_S)

    def wait_running(self, timeout_s: float = 120.0) -> None:
        """Wait until every task of the job runs."""
        self.wait(lambda state: state == "RUNNING" and self.all_tasks_run(), timeout_s)

    def all_tasks_run(self) -> bool:
        """Whether the job runs, and every task of it, as the JobManager sees them now.

        Raises:
            JobError: it does not answer.
        """
        found = self.rest.get(f"/jobs/{self.job_id}")
        tasks = (vertex["status"] in ("RUNNING", "FINISHED") for vertex in found["vertices"])
        return found["state"] == "RUNNING" and all(tasks)

    def cancel(self, timeout_s: float = 60.0) -> None:
        """Cancel the job and wait for its end; nothing happens if it ended already."""
        if self.state() in TERMINAL_STATES:
            return
        refused = None
        try:
            self.rest.cancel(self.job_id)
        except JobError as exc:  # it may have ended: what is told of its state can be seconds old
            refused, timeout_s = exc, _STALE_S
        try:
            self.wait(lambda state: state in TERMINAL_STATES, timeout_s)
        except JobError as exc:
            raise refused or exc from None

    def stop_with_savepoint(
        self, folder: str, *, drain: bool = False, timeout_s: float = 600.0
    ) -> str:
        """Stop the job with a savepoint; returns the savepoint's URL.

        Args:
            folder: Where it goes: a folder or URL that every TaskManager reaches.
            drain: Also end the input: what is in flight is written before the savepoint.
            timeout_s: Longest wait.

        Raises:
            JobError: it failed or took too long; the job then still runs.
        """
        asked = {"targetDirectory": as_url(folder), "drain": drain}
        trigger = self.rest.post(f"/jobs/{self.job_id}/stop", asked)["request-id"]
        deadline_s = time.monotonic() + timeout_s
        while True:
            found = self.rest.get(f"/jobs/{self.job_id}/savepoints/{trigger}")
            if found["status"]["id"] == "COMPLETED":
                break
            if time.monotonic() > deadline_s:
                raise JobError(f"no savepoint after {timeout_s:.0f} s")
            time.sleep(_POLL_S)
        operation = found["operation"]
        if "location" not in operation:
            raise JobError(f"no savepoint: {cause_of(operation['failure-cause']['stack-trace'])}")
        self.wait(lambda state: state == "FINISHED", timeout_s)
        return str(operation["location"])


class _Ending(NamedTuple):
    state: str
    stacktrace: str


def _ending_of(result: Any) -> _Ending:
    """Read PyFlink's future of a job's result, which is done."""
    from py4j.protocol import Py4JJavaError

    try:
        result.result()
    except Py4JJavaError as exc:
        text = str(exc)
        return _Ending("CANCELED" if "JobCancellationException" in text else "FAILED", text)
    return _Ending("FINISHED", "")
