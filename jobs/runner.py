"""Runs a job: on a mini-cluster inside this process' JVM, or on a cluster that is there.

The job's life is watched through Flink's REST API, which both have.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from jobs.environment import BUILD, NotReadyError, as_url, thread_mode_env
from jobs.jars import flink_jars
from jobs.settings import Settings
from jobs.stack import HOST, free_port
from jobs.starting import EMPTY, Start

TERMINAL_STATES = frozenset({"FINISHED", "CANCELED", "FAILED", "SUSPENDED"})
_PACKAGE = re.compile(r"^(?:[a-z_][\w$]*\.)+(?=[A-Z])")
_POLL_S = 0.1
_ANSWER_S = 60.0
"""Longest wait for an answer of the REST API: on a machine with more to do than cores, seconds."""
_TRIES = 3
_PATIENCE_S = 30.0
_BUSY = 503
_GONE_S = 10.0
"""How long a mini-cluster whose REST API is gone may take to say how the job ended."""


class JobError(RuntimeError):
    """The job failed, or did not do in time what it should; the text says why."""


class NoAnswerError(JobError):
    """The JobManager does not answer: it hangs, is busy, starts again, or is gone."""


class Patience:
    """How long a JobManager may not answer: one that was killed or hung comes back.

    Args:
        seconds: Since the last answer; at least three tries are made however long each takes.
    """

    def __init__(self, seconds: float = _PATIENCE_S) -> None:
        self._seconds = seconds
        self.answered()

    def answered(self) -> None:
        """It has answered."""
        self._since_s, self._tries = time.monotonic(), 0

    def missed(self, error: JobError) -> None:
        """It has not; raises the error when that is enough."""
        self._tries += 1
        if self._tries >= _TRIES and time.monotonic() - self._since_s > self._seconds:
            raise error


class FlinkRest:
    """The part of Flink's REST API that is needed here.

    Args:
        address: host:port of the JobManager.
        answer_s: Longest wait for an answer.
    """

    def __init__(self, address: str, answer_s: float = _ANSWER_S) -> None:
        self.address = address
        self._answer_s = answer_s

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

    def post(self, path: str, body: Mapping[str, Any]) -> Any:
        """Ask for something, e.g. ``/savepoint-disposal``; the answer's JSON.

        Raises:
            JobError: nobody answers there, or with an error.
        """
        return self._call("POST", path, json.dumps(body).encode())

    def cancel(self, job_id: str) -> None:
        """Ask for the job's end; it keeps its last checkpoint."""
        self._call("PATCH", f"/jobs/{job_id}?mode=cancel")

    def _call(self, method: str, path: str, body: bytes | None = None) -> Any:
        headers = {"Content-Type": "application/json"} if body is not None else {}
        url = f"{self.url}{path}"
        request = urllib.request.Request(url, body, headers, method=method)  # noqa: S310 (http)
        try:
            with urllib.request.urlopen(request, timeout=self._answer_s) as response:  # noqa: S310
                return json.loads(response.read() or b"null")
        except urllib.error.HTTPError as exc:
            said = exc.read().decode(errors="replace").strip()
            kind = NoAnswerError if exc.code == _BUSY else JobError  # no leader is elected yet
            raise kind(f"{self.url}{path}: {exc}: {_cause(said)[:500]}") from exc
        except (OSError, ValueError) as exc:
            raise NoAnswerError(f"{self.url}{path}: {exc}") from exc


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
        return _cause(self.failure())

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
        if self.state() not in TERMINAL_STATES:
            self.rest.cancel(self.job_id)
            self.wait(lambda state: state in TERMINAL_STATES, timeout_s)

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
            raise JobError(f"no savepoint: {_cause(operation['failure-cause']['stack-trace'])}")
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


def _cause(stacktrace: str) -> str:
    """The line of a Java stack trace that names the root cause, without its class' package."""
    lines = [line.strip() for line in stacktrace.splitlines()]
    causes = [line.removeprefix("Caused by: ") for line in lines if line.startswith("Caused by:")]
    line = (causes[-1:] or [line for line in lines if line][:1] or ["no cause was reported"])[0]
    return _PACKAGE.sub("", line)


def start(settings: Settings, target: str | None = None, begin: Start = EMPTY) -> RunningJob:
    """Submit a job and return at once; ``RunningJob`` tells how it fares.

    The first call in a process starts its JVM, some seconds. A process whose JVM is already there
    (PyFlink was used before) must have had ``prepare()`` called first.

    Args:
        settings: The job's settings.
        target: host:port of a cluster's JobManager; none runs a mini-cluster in this process' JVM,
            which ends with the process.
        begin: From which state and positions.

    Raises:
        NotReadyError: jars are missing, or nobody answers at the target.
        SettingsError: the model does not fit the settings.
        JobError: Flink refused the job.
    """

    def build(env: Any) -> None:
        from jobs import shapes

        shapes.build(env, settings, begin)

    return submit(settings, build, target, begin.options)


def submit(
    settings: Settings,
    build: Callable[[Any], None],
    target: str | None = None,
    options: Mapping[str, str] | None = None,
) -> RunningJob:
    """Submit a job of any shape; arguments and errors as those of ``start``.

    Args:
        settings: How Flink runs it.
        build: Wires the job into an environment.
        target: host:port of a cluster's JobManager, or none.
        options: Further Flink options.
    """
    prepare()
    from py4j.protocol import Py4JJavaError

    from jobs import pipeline

    address = target or f"{HOST}:{settings.flink.web_port or free_port()}"
    if target is not None:
        _check_reachable(target)
    more = [settings.kinesis.jar] if settings.kinesis is not None else []
    given = _target_options(address, more, remote=target is not None) | dict(options or {})
    configuration = pipeline.flink_configuration(settings, given)
    env = _environment(configuration, remote=target is not None)
    try:
        build(env)
        client = env.execute_async(settings.name)
    except Py4JJavaError as exc:
        raise JobError(f"Flink refused the job: {_cause(str(exc))}") from exc
    return RunningJob(str(client.get_job_id()), FlinkRest(address), client)


def _environment(configuration: Any, *, remote: bool) -> Any:
    from pyflink.datastream import StreamExecutionEnvironment
    from pyflink.java_gateway import get_gateway

    if not remote:
        return StreamExecutionEnvironment.get_execution_environment(configuration)
    # Outside `flink run`, get_execution_environment() sets execution.target to local.
    environments = get_gateway().jvm.org.apache.flink.streaming.api.environment
    java_env = environments.StreamExecutionEnvironment(configuration._j_configuration)
    return StreamExecutionEnvironment(java_env)


def prepare() -> None:
    """Set what PyFlink's JVM inherits; does nothing to a JVM that already runs."""
    os.environ.update(thread_mode_env())
    # Beam, which PyFlink imports, warns of stores' packages that nothing here asks for.
    logging.getLogger("apache_beam.io.filesystems").setLevel(logging.ERROR)
    (BUILD / "logs").mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("FLINK_LOG_DIR", str(BUILD / "logs"))


def _target_options(
    address: str, more_jars: Sequence[Path] = (), *, remote: bool
) -> dict[str, str]:
    for jar in more_jars:
        if not jar.is_file():
            raise NotReadyError(f"there is no {jar}", "put the connector's jar there")
    host, _, port = address.rpartition(":")
    options = {
        "pipeline.jars": ";".join(jar.absolute().as_uri() for jar in [*flink_jars(), *more_jars]),
        "rest.address": host,
        "rest.port": port,
    }
    if remote:
        return options | {"execution.target": "remote", "execution.attached": "false"}
    return options | {
        "rest.bind-address": host,
        "rest.bind-port": port,
        "python.executable": sys.executable,  # a cluster's machines have a path of their own
    }


def _check_reachable(target: str) -> None:
    try:
        FlinkRest(target).get("/overview")
    except JobError as exc:
        raise NotReadyError(f"no Flink cluster answers at {target}", "start one") from exc
