"""A standalone Flink cluster on this machine: one JobManager, some TaskManagers, loopback only.

Its processes outlive the command that starts them; ``cluster.json`` says which they are. In thread
mode a TaskManager keeps the Python modules that it has imported for its life, so each has a code
folder of its own, a link that is fixed once its Python has started: other code needs another
TaskManager (``use_code``).
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil

from jobs.cluster.flink_home import flink_home, write_configuration, write_library
from jobs.environment import BUILD, ROOT, NotReadyError, thread_mode_env
from jobs.flink_rest import FlinkRest, JobError
from jobs.ports import HOST, free_port, is_free
from jobs.processes import Started, end, find
from jobs.running_job import TERMINAL_STATES, RunningJob

CLUSTER = BUILD / "cluster"
_START_S = 120.0
_STOP_S = 30.0
_POLL_S = 0.05
_NO_VARIABLES: Mapping[str, str] = {}


class ClusterError(NotReadyError):
    """The cluster cannot be started, reached or changed."""


@dataclass
class ClusterState:
    """What ``cluster.json`` says.

    Attributes:
        rest: host:port of the web page and the REST API.
        slots: Of each TaskManager.
        next_number: Of the TaskManager that is started next; names are never used again.
        processes: By name: ``jobmanager``, ``tm-0``, ...
        application: Whether it runs one job, with which its JobManager ends.
    """

    rest: str
    slots: int
    next_number: int = 0
    processes: dict[str, Started] = field(default_factory=dict)
    application: bool = False

    @property
    def task_managers(self) -> list[str]:
        """The TaskManagers' names, oldest first."""
        return [name for name in self.processes if name != "jobmanager"]


class StandaloneCluster:
    """One cluster; whoever has its folder can use and stop it.

    Args:
        folder: For its configuration, logs, temporary files and ``cluster.json``.
        variables: Further environment variables of the TaskManagers.
    """

    def __init__(
        self, folder: Path = CLUSTER, variables: Mapping[str, str] = _NO_VARIABLES
    ) -> None:
        self.folder = folder.absolute()
        self._variables = variables
        self._variables_of_all: Mapping[str, str] = {}
        self._children: list[subprocess.Popen[bytes]] = []

    @property
    def rest(self) -> FlinkRest:
        """The REST API of the running cluster.

        Raises:
            ClusterError: it does not run.
        """
        return FlinkRest(self.running().rest)

    def running(self) -> ClusterState:
        """The running cluster.

        Raises:
            ClusterError: it does not run.
        """
        state = self.state()
        if state is None:
            raise ClusterError("the cluster does not run", "run: streamscore cluster up")
        return state

    def state(self) -> ClusterState | None:
        """The running cluster with its processes that live, None without a JobManager."""
        recorded = self._recorded()
        if recorded is None:
            return None
        alive = {n: p for n, p in recorded.processes.items() if find(p, self._mark)}
        recorded.processes = alive
        return recorded if "jobmanager" in alive else None

    def up(
        self,
        task_managers: int,
        slots: int = 1,
        *,
        port: int | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> ClusterState:
        """Start the cluster and wait for its slots; starts only what is missing.

        Args:
            task_managers: How many there shall be; more than that are left alone.
            slots: Of each TaskManager.
            port: Of the web page; None takes a free one.
            options: Flink's, over conf/flink.yaml.

        Raises:
            ClusterError: the port is taken, it runs with other slots or port, a process ended or
                none answered in time; what this call started is then stopped.
        """
        with self._changing():
            state = self.state()
            if state is None:
                self._end_leftovers()
                state = self._start_jobmanager(slots, port, options or {}, "jobmanager.sh")
            _check_same(state, slots, port)
            with self._undone_if_failed(state):
                while len(state.task_managers) < task_managers:
                    self._start_task_manager(state, ROOT)
                self.wait_complete(state)
            return state

    def session(self) -> ClusterState:
        """The running cluster, to which jobs are submitted.

        Raises:
            ClusterError: it does not run, or runs one job alone.
        """
        state = self.running()
        if state.application:
            raise ClusterError(
                f"the cluster in {self.folder} is for one job alone and ends with it",
                "use streamscore savepoint take --stop, then streamscore submit --target "
                "application --savepoint with its path",
            )
        return state

    def up_application(
        self,
        arguments: Sequence[str],
        code: Path,
        task_managers: int,
        slots: int,
        options: Mapping[str, Any],
        variables: Mapping[str, str],
    ) -> ClusterState:
        """Start a cluster whose JobManager runs one job: ``standalone-job.sh`` with arguments.

        Args:
            arguments: What to run.
            code: Folder with the code of all processes.
            task_managers: How many.
            slots: Of each.
            options: Flink's, over conf/flink.yaml.
            variables: Further environment variables of all processes.

        Raises:
            ClusterError: it runs already, or as ``up``.
        """
        with self._changing():
            if self.state() is not None:
                fix = "stop it first: streamscore cluster down"
                raise ClusterError(f"a cluster runs in {self.folder}", fix)
            self._end_leftovers()
            self._variables_of_all = variables
            script = "standalone-job.sh"
            state = self._start_jobmanager(slots, None, options, script, arguments, code)
            with self._undone_if_failed(state):
                for _ in range(task_managers):
                    self._start_task_manager(state, code)
                self.wait_complete(state)
            return state

    def down(self) -> bool:
        """Stop every process by its id: SIGTERM, a bounded wait, SIGKILL; whether there was one."""
        with self._changing():
            return self._end_leftovers()

    def kill(self, name: str) -> None:
        """End a process as a lost machine would."""
        self._end([name], signal.SIGKILL)

    def restart_jobmanager(self) -> None:
        """Start a JobManager that ended, on its ports; its TaskManagers come back to it.

        Its jobs go on only where ``high-availability.type`` says where they are written down.

        Raises:
            ClusterError: none was started here.
        """
        with self._changing():
            state = self._recorded()
            if state is None:
                raise ClusterError("the cluster does not run", "run: streamscore cluster up")
            if self.state() is None:
                self._start(state, "jobmanager", "jobmanager.sh")

    def stop_task_managers(self, names: Sequence[str]) -> None:
        """Stop some TaskManagers in order."""
        with self._changing():
            self._end(names, signal.SIGTERM)

    def retire_task_managers(self, names: Sequence[str]) -> None:
        """Have TaskManagers stop, and wait only until the JobManager gives them no more tasks.

        ``stop_task_managers`` then waits for their processes.

        Raises:
            ClusterError: it knows them still after some time.
        """
        state = self.running()
        for name in names:
            process = find(state.processes[name], self._mark) if name in state.processes else None
            if process is not None:
                with suppress(psutil.NoSuchProcess):
                    process.terminate()
        deadline_s = time.monotonic() + _STOP_S
        rest = FlinkRest(state.rest)
        while {tm["id"] for tm in rest.get("/taskmanagers")["taskmanagers"]} & set(names):
            if time.monotonic() > deadline_s:
                raise ClusterError(f"{', '.join(names)} are still registered", self._see)
            time.sleep(_POLL_S)

    def add_task_managers(self, count: int, code: Path = ROOT) -> list[str]:
        """Start TaskManagers that run the code in a folder; returns their names at once.

        ``wait_complete`` waits for them.
        """
        with self._changing():
            state = self.running()
            return [self._start_task_manager(state, code) for _ in range(count)]

    def use_code(self, code: Path) -> list[str]:
        """Let every TaskManager run the code in a folder; replaces those that ran other code.

        Returns:
            The names of the new TaskManagers.

        Raises:
            ClusterError: jobs run on the cluster with other code.
        """
        state = self.running()
        old = [name for name in state.task_managers if not self._takes(name, state, code)]
        if not old:
            return []
        if jobs := running_jobs(FlinkRest(state.rest)):
            raise ClusterError(
                f"{', '.join(jobs.values())} runs on this cluster with other code, which its "
                "TaskManagers keep",
                "use: streamscore upgrade, or --target application",
            )
        self.stop_task_managers(old)
        new = self.add_task_managers(len(old), code)
        self.wait_complete(self.running())
        return new

    def wait_complete(self, state: ClusterState, timeout_s: float = _START_S) -> None:
        """Wait until the JobManager knows every TaskManager of a state.

        Raises:
            ClusterError: one ended, or not in time.
        """
        deadline_s = time.monotonic() + timeout_s
        while not self._is_complete(state):
            for name, started in state.processes.items():
                if find(started, self._mark) is None:
                    raise ClusterError(f"{name} ended: {self._last_words(name)}", self._see)
            if time.monotonic() > deadline_s:
                raise ClusterError(f"no complete cluster within {timeout_s:.0f} s", self._see)
            time.sleep(_POLL_S)

    def wait_job(self, timeout_s: float) -> str:
        """Wait until an application cluster has its job; returns the job's id.

        Raises:
            ClusterError: its JobManager ended, or not in time.
        """
        deadline_s = time.monotonic() + timeout_s
        while True:
            state = self.state()
            if state is None:
                words = self._last_words("jobmanager")
                raise ClusterError(f"the JobManager ended: {words}", self._see)
            with suppress(JobError):
                for job in FlinkRest(state.rest).get("/jobs/overview")["jobs"]:
                    return str(job["jid"])
            if time.monotonic() > deadline_s:
                raise ClusterError(f"no job within {timeout_s:.0f} s", self._see)
            time.sleep(_POLL_S)

    def task_managers_of(self, job_id: str) -> set[str]:
        """The TaskManagers that run a task of a job."""
        return RunningJob(job_id, self.rest).task_managers()

    def code_of(self, name: str) -> Path:
        """The folder whose code a TaskManager runs."""
        return (self.folder / "code" / name).resolve()

    def without_python(self) -> list[str]:
        """The TaskManagers that have not run a job yet."""
        state = self.running()
        return [name for name in state.task_managers if not _has_python(state.processes[name])]

    # -- the parts ------------------------------------------------------------------------------

    @property
    def _mark(self) -> str:
        return f"streamscore.cluster={self.folder}"

    @property
    def _see(self) -> str:
        return f"see {self.folder / 'logs'}; streamscore doctor checks this machine"

    @property
    def _state_path(self) -> Path:
        return self.folder / "cluster.json"

    def _recorded(self) -> ClusterState | None:
        try:
            document = json.loads(self._state_path.read_text(encoding="utf-8"))
            document["processes"] = {n: Started(**p) for n, p in document["processes"].items()}
            return ClusterState(**document)
        except (FileNotFoundError, ValueError, TypeError, KeyError):
            return None

    def record(self, state: ClusterState) -> None:
        """Write down what runs."""
        draft = self._state_path.with_suffix(".tmp")
        draft.write_text(json.dumps(asdict(state)), encoding="utf-8")
        draft.replace(self._state_path)

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """One command at a time starts or stops processes."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    @contextmanager
    def _undone_if_failed(self, state: ClusterState) -> Iterator[None]:
        """Stop what a failed start has left, and a cluster that it has started alone."""
        before = self.state()
        known = set(before.processes) if before and before.task_managers else set()
        try:
            yield
        except BaseException:
            self._end([n for n in state.processes if n not in known], signal.SIGTERM)
            raise

    def _start_jobmanager(
        self,
        slots: int,
        port: int | None,
        options: Mapping[str, Any],
        script: str,
        arguments: Sequence[str] = (),
        code: Path = ROOT,
    ) -> ClusterState:
        if port is not None and not is_free(port):
            raise ClusterError(f"port {port} is taken", "choose another with --port, or none")
        rest_port = port or free_port()
        rpc_port = free_port(other_than=rest_port)
        all_options = {"taskmanager.numberOfTaskSlots": slots, **options}
        write_configuration(self.folder, rest_port, rpc_port, all_options)
        state = ClusterState(f"{HOST}:{rest_port}", slots, application=bool(arguments))
        self._link("jobmanager", code)
        self._start(state, "jobmanager", script, *arguments)
        return state

    def _start_task_manager(self, state: ClusterState, code: Path) -> str:
        name = f"tm-{state.next_number}"
        state.next_number += 1
        self._link(name, code)
        self._start(state, name, "taskmanager.sh", f"-Dtaskmanager.resource-id={name}")
        return name

    def _link(self, name: str, code: Path) -> None:
        link = self.folder / "code" / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(code.absolute())

    def _takes(self, name: str, state: ClusterState, code: Path) -> bool:
        """Whether a TaskManager runs this code, or can be told to as it has run none."""
        if self.code_of(name) == code.resolve():
            return True
        if _has_python(state.processes[name]):
            return False
        self._link(name, code)
        return True

    def _start(self, state: ClusterState, name: str, script: str, *arguments: str) -> None:
        variables = dict(self._variables_of_all) | {
            "FLINK_CONF_DIR": str(self.folder / "conf"),
            "FLINK_LOG_DIR": str(self.folder / "logs"),
            "FLINK_PID_DIR": str(self.folder / "tmp"),
        }
        if name != "jobmanager":  # which outlives the connectors of an upgrade
            variables |= {"FLINK_LIB_DIR": str(write_library(self.folder)), **self._variables}
        # The mark is an option that Flink does not know: script and JVM are told by it.
        command = [str(flink_home() / "bin" / script), "start-foreground"]
        command += ["-D", self._mark, *arguments]
        with self._console(name).open("wb") as console:
            child = subprocess.Popen(
                command,
                env=os.environ | thread_mode_env(self.folder / "code" / name) | variables,
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._children.append(child)
        state.processes[name] = Started.of(child.pid)
        self.record(state)

    def _console(self, name: str) -> Path:
        return self.folder / "logs" / f"{name}.out"

    def _last_words(self, name: str) -> str:
        text = self._console(name).read_text(errors="replace")
        wrong = [line for line in text.splitlines() if "ERROR" in line or "Exception" in line]
        return wrong[-1] if wrong else "it left no error"

    def _is_complete(self, state: ClusterState) -> bool:
        try:
            found = FlinkRest(state.rest).get("/taskmanagers")["taskmanagers"]
        except JobError:
            return False
        offered = {tm["id"] for tm in found if tm["slotsNumber"] == state.slots}
        return offered >= set(state.task_managers)

    def _end_leftovers(self) -> bool:
        recorded = self._recorded()
        alive = (
            [n for n, p in recorded.processes.items() if find(p, self._mark)] if recorded else []
        )
        self._end(alive, signal.SIGTERM)
        self._state_path.unlink(missing_ok=True)
        return bool(alive)

    def _end(self, names: Sequence[str], how: signal.Signals) -> None:
        state = self._recorded()
        if state is None:
            return
        found = {n: find(state.processes[n], self._mark) for n in names if n in state.processes}
        alive = [process for process in found.values() if process is not None]
        for process in alive:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(how)
        for process in alive:
            end(process, how, _STOP_S)
        for child in self._children:
            child.poll()  # or Popen warns that its process still runs
        state.processes = {n: p for n, p in state.processes.items() if n not in found}
        self.record(state)


def _check_same(state: ClusterState, slots: int, port: int | None) -> None:
    running_port = int(state.rest.rpartition(":")[2])
    if state.slots != slots or port not in (None, running_port):
        raise ClusterError(
            f"a cluster with {state.slots} slots a TaskManager runs at {state.rest}",
            "take that one, or stop it first: streamscore cluster down",
        )


def running_jobs(rest: FlinkRest) -> dict[str, str]:
    """Names of the jobs that have not ended, by id."""
    found = rest.get("/jobs/overview")["jobs"]
    return {job["jid"]: job["name"] for job in found if job["state"] not in TERMINAL_STATES}


def free_slots(rest: FlinkRest) -> dict[str, int]:
    """Slots that no job has, by TaskManager."""
    return {tm["id"]: tm["freeSlots"] for tm in rest.get("/taskmanagers")["taskmanagers"]}


def _has_python(started: Started) -> bool:
    """Whether a TaskManager's JVM has started its Python."""
    try:
        maps = psutil.Process(started.pid).memory_maps()
    except psutil.NoSuchProcess:
        return False
    return any("pemja" in entry.path for entry in maps)
