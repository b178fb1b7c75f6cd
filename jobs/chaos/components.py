"""The processes and ways of a stack that faults act on."""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import psutil

from jobs.chaos.broker import Brokers
from jobs.chaos.leftovers import Leftovers
from jobs.cluster.standalone import StandaloneCluster
from jobs.demo.model_process import ModelProcess
from jobs.environment import NotReadyError
from jobs.flink_rest import JobError
from jobs.running_job import RunningJob

_KILLED_S = 10.0


class Component(Protocol):
    """A process of the stack that faults act on."""

    def pid(self) -> int:
        """Its process id.

        Raises:
            NotReadyError: it does not run.
        """

    def revive(self) -> None:
        """Start it again if it does not run."""


class Way(Protocol):
    """A way to a part of the stack that faults act on: one link, or several."""

    def be(self, how: str) -> None:
        """See ``Link.be``."""


@dataclass(frozen=True)
class _Part:
    """A component made of two functions."""

    find: Callable[[], int | None]
    start: Callable[[], object]
    name: str

    def pid(self) -> int:
        """See ``Component``."""
        pid = self.find()
        if pid is None:
            raise NotReadyError(f"the {self.name} does not run", "see its log")
        return pid

    def revive(self) -> None:
        """See ``Component``."""
        if self.find() is None:
            self.start()


def broker(brokers: Brokers, topic: str) -> Component:
    """The one, or of several the one that leads."""

    def pid() -> int | None:
        with suppress(NotReadyError):
            state = brokers.leader(topic).status()
            return None if state is None else state.pid
        return None

    class Broker(_Part):
        def revive(self) -> None:
            brokers.revive()

    return Broker(pid, brokers.revive, "broker")


def supervised(server: ModelProcess, folder: Path) -> Component:
    """The model server, started again as a supervisor would do it."""

    def start() -> None:
        server.start()
        Leftovers(folder).note("server", server.pid(), "model_server")

    return _Part(server.pid, start, "model server")


def worker(server: ModelProcess) -> Component:
    """One of the server's workers, Python processes that it starts again itself."""

    def pid() -> int | None:
        with suppress(psutil.NoSuchProcess):
            for child in psutil.Process(server.pid()).children() if server.pid() else ():
                if child.status() != psutil.STATUS_ZOMBIE:
                    return child.pid
        return None

    return _Part(pid, lambda: None, "model server's worker")


def task_manager(cluster: StandaloneCluster, job: RunningJob, count: int, code: Path) -> Component:
    """One of those that run the job, or any if nobody tells which."""

    def pid() -> int | None:
        state = cluster.running()
        names = state.task_managers
        with suppress(JobError, NotReadyError):
            names = sorted(cluster.task_managers_of(job.job_id) & set(names)) or names
        return state.processes[names[0]].pid if names else None

    def start() -> None:
        cluster.add_task_managers(1, code)

    class TaskManagers(_Part):
        """Keeps as many as there were."""

        def revive(self) -> None:
            state = cluster.state()
            if state is not None:
                missing = count - len(state.task_managers)
                cluster.add_task_managers(max(0, missing), code)

    return TaskManagers(pid, start, "TaskManager")


def job_manager(cluster: StandaloneCluster) -> Component:
    """The cluster's JobManager."""

    def pid() -> int | None:
        state = cluster.state()
        return None if state is None else state.processes["jobmanager"].pid

    return _Part(pid, cluster.restart_jobmanager, "JobManager")


def signal_processes(pids: Sequence[int], how: signal.Signals) -> list[int]:
    """Send a signal to processes and all that they have started; those killed are waited for.

    Returns:
        Their ids, without those that have ended.
    """
    found: dict[int, psutil.Process] = {}
    for pid in pids:
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            found |= {p.pid: p for p in [process, *process.children(recursive=True)]}
    for process in found.values():
        with suppress(psutil.NoSuchProcess):
            process.send_signal(how)
    if how == signal.SIGKILL:
        psutil.wait_procs(found.values(), _KILLED_S)
    return list(found)
