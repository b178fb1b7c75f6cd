"""Runs a job: on a mini-cluster inside this process' JVM, or on a cluster that is there.

The job's life is watched through Flink's REST API, which both have.
"""

from __future__ import annotations

import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jobs.environment import BUILD, NotReadyError, thread_mode_env
from jobs.jars import flink_jars
from jobs.settings import Settings
from jobs.stack import HOST, free_port

TERMINAL_STATES = frozenset({"FINISHED", "CANCELED", "FAILED", "SUSPENDED"})
_POLL_S = 0.1


class JobError(RuntimeError):
    """The job failed, or did not do in time what it should; the text says why."""


class FlinkRest:
    """The part of Flink's REST API that is needed here.

    Args:
        address: host:port of the JobManager.
    """

    def __init__(self, address: str) -> None:
        self.address = address

    @property
    def url(self) -> str:
        """Flink's web page."""
        return f"http://{self.address}"

    def get(self, path: str) -> Any:
        """The JSON behind a path, e.g. ``/jobs/overview``.

        Raises:
            JobError: nobody answers there, or with an error.
        """
        return self._call("GET", path)

    def cancel(self, job_id: str) -> None:
        """Ask for the job's end; it keeps its last checkpoint."""
        self._call("PATCH", f"/jobs/{job_id}?mode=cancel")

    def _call(self, method: str, path: str) -> Any:
        request = urllib.request.Request(f"{self.url}{path}", method=method)
        try:
            with urllib.request.urlopen(request, timeout=10) as response:
                return json.loads(response.read() or b"null")
        except (OSError, ValueError) as exc:
            raise JobError(f"{self.url}{path}: {exc}") from exc


@dataclass(frozen=True)
class RunningJob:
    """A submitted job.

    Attributes:
        job_id: Flink's id, 32 hex digits.
        rest: The cluster it runs on.
    """

    job_id: str
    rest: FlinkRest

    def state(self) -> str:
        """Flink's word for the job's state, e.g. RUNNING."""
        return str(self.rest.get(f"/jobs/{self.job_id}")["state"])

    def failure(self) -> str:
        """The cause of the last failure, empty if there was none."""
        found = self.rest.get(f"/jobs/{self.job_id}/exceptions?maxExceptions=1")
        entries = found.get("exceptionHistory", {}).get("entries", [])
        return str(entries[0]["stacktrace"]) if entries else ""

    def checkpoints_completed(self) -> int:
        """How many checkpoints are complete."""
        return int(self.rest.get(f"/jobs/{self.job_id}/checkpoints")["counts"]["completed"])

    def wait(self, until: Callable[[str], bool], timeout_s: float) -> str:
        """Wait until the job's state is one that ``until`` accepts; returns that state.

        Raises:
            JobError: it ended otherwise, or did not get there in time.
        """
        deadline_s = time.monotonic() + timeout_s
        while not until(state := self.state()):
            if state in TERMINAL_STATES:
                raise JobError(f"the job ended as {state}: {_cause(self.failure())}")
            if time.monotonic() > deadline_s:
                raise JobError(f"the job is still {state} after {timeout_s:.0f} s")
            time.sleep(_POLL_S)
        return state

    def wait_running(self, timeout_s: float = 120.0) -> None:
        """Wait until every task of the job runs."""
        self.wait(lambda state: state == "RUNNING" and self._all_tasks_run(), timeout_s)

    def _all_tasks_run(self) -> bool:
        vertices = self.rest.get(f"/jobs/{self.job_id}")["vertices"]
        return all(vertex["status"] in ("RUNNING", "FINISHED") for vertex in vertices)

    def cancel(self, timeout_s: float = 60.0) -> None:
        """Cancel the job and wait for its end; nothing happens if it ended already."""
        if self.state() not in TERMINAL_STATES:
            self.rest.cancel(self.job_id)
            self.wait(lambda state: state in TERMINAL_STATES, timeout_s)


def _cause(stacktrace: str) -> str:
    causes = [line for line in stacktrace.splitlines() if line.startswith("Caused by:")]
    first = stacktrace.splitlines()[:1]
    return (causes[-1:] or first or ["no cause was reported"])[0]


def start(settings: Settings, target: str | None = None) -> RunningJob:
    """Submit a job and return at once; ``RunningJob`` tells how it fares.

    The first call in a process starts its JVM, some seconds. A process whose JVM is already there
    (PyFlink was used before) must have had ``prepare()`` called first.

    Args:
        settings: The job's settings.
        target: host:port of a cluster's JobManager; none runs a mini-cluster in this process' JVM,
            which ends with the process.

    Raises:
        NotReadyError: jars are missing, or nobody answers at the target.
        SettingsError: the model does not fit the settings.
    """
    prepare()
    from pyflink.datastream import StreamExecutionEnvironment

    from jobs import pipeline

    address = target or f"{HOST}:{settings.flink.web_port or free_port()}"
    if target is not None:
        _check_reachable(target)
    options = _target_options(address, remote=target is not None)
    env = StreamExecutionEnvironment.get_execution_environment(
        pipeline.flink_configuration(settings, options)
    )
    pipeline.build(env, settings)
    client = env.execute_async(settings.name)
    return RunningJob(str(client.get_job_id()), FlinkRest(address))


def prepare() -> None:
    """Set what PyFlink's JVM inherits; does nothing to a JVM that already runs."""
    os.environ.update(thread_mode_env())
    (BUILD / "logs").mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("FLINK_LOG_DIR", str(BUILD / "logs"))


def _target_options(address: str, *, remote: bool) -> dict[str, str]:
    host, _, port = address.rpartition(":")
    options = {
        "pipeline.jars": ";".join(jar.absolute().as_uri() for jar in flink_jars()),
        "rest.address": host,
        "rest.port": port,
    }
    if remote:
        return options | {"execution.target": "remote", "execution.attached": "false"}
    return options | {"rest.bind-address": host, "rest.bind-port": port}


def _check_reachable(target: str) -> None:
    try:
        FlinkRest(target).get("/overview")
    except JobError as exc:
        raise NotReadyError(f"no Flink cluster answers at {target}", "start one") from exc
