"""All that a job needs, of its own, at loopback only, and with links that can be hurt."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import psutil

from jobs import jars
from jobs import settings as job_settings
from jobs.chaos.broker import LinkedBroker
from jobs.chaos.leftovers import Leftovers
from jobs.chaos.proxy import Link
from jobs.chaos.zookeeper import ZooKeeper
from jobs.cluster import submission
from jobs.cluster.standalone import StandaloneCluster
from jobs.demo.model_process import ModelProcess
from jobs.environment import BUILD, NotReadyError
from jobs.flink_rest import FlinkRest, JobError
from jobs.kafka_topics import create_topics, partitions_of
from jobs.running_job import RunningJob
from jobs.settings import Settings

CHAOS = BUILD / "chaos"
_LOOPBACK = ("127.0.0.1", "localhost", "[::1]", "::1")
_SLOTS = 2
"""Of a TaskManager, so that the others can take what a lost one ran."""

_ANSWER_S = 5.0

Progress = Callable[[str], None]


class Component(Protocol):
    """A process of the stack that faults act on."""

    def pid(self) -> int:
        """Its process id.

        Raises:
            NotReadyError: it does not run.
        """

    def revive(self) -> None:
        """Start it again if it does not run."""


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


@dataclass
class Stack:
    """What runs.

    Attributes:
        settings: The job's, with addresses that lead around the links.
        folder: Of all files.
        components: Processes by name: broker, jobmanager, taskmanager, and server.
        links: Ways that can be hurt, by what is at their end: broker, and server.
        checkpoints: The folder of the job's checkpoints.
        cluster: Where the job runs.
        job: The running job.
    """

    settings: Settings
    folder: Path
    components: dict[str, Component]
    links: dict[str, Link]
    checkpoints: Path
    cluster: StandaloneCluster
    job: RunningJob

    def flink_pids(self) -> list[int]:
        """The processes of Flink that live."""
        state = self.cluster.state()
        return [] if state is None else [started.pid for started in state.processes.values()]

    def mend(self) -> None:
        """Start again what has ended, whoever ended it."""
        for component in self.components.values():
            component.revive()

    def runs(self) -> bool:
        """Whether every task of the job runs, as far as its JobManager tells."""
        with suppress(JobError):
            return self.job.all_tasks_run()
        return False

    def restarts(self) -> int:
        """How often Flink has restarted the job, as far as its JobManager knows."""
        with suppress(JobError):
            return self.job.restarts()
        return 0


def check(settings: Settings) -> None:
    """Refuse a job that cannot be tried here.

    Raises:
        NotReadyError: it names another machine, or needs what this stack does not have.
    """
    servers = [] if settings.model.embedded else settings.model.server.split(",")
    for address in [*settings.kafka.bootstrap_servers.split(","), *servers]:
        if address.strip().rpartition(":")[0] not in _LOOPBACK:
            raise NotReadyError(
                f"{address} is not an address of this machine: chaos is for loopback only",
                "take a settings file of a test, or --set kafka.bootstrap_servers=127.0.0.1:9092 "
                "and --set model.server=127.0.0.1:8500",
            )
    needs = {
        "kinesis": settings.kinesis,
        "rollup": settings.rollup,
        "ranking": settings.ranking,
        "tables": settings.tables,
        "lookups": settings.lookups,
        "a login to Kafka": settings.kafka.python_properties(),
        "model.tls": settings.model.tls,
        "privacy": settings.privacy,
        "overload": settings.overload,
    }
    if found := [name for name, value in needs.items() if value]:
        raise NotReadyError(
            f"the job has {', '.join(found)}, which chaos cannot bring up",
            "take a settings file without",
        )


@contextmanager
def running(
    conf: Path,
    overrides: Mapping[str, Any],
    folder: Path = CHAOS,
    task_managers: int = 2,
    progress: Progress = jars.silent,
) -> Iterator[Stack]:
    """Bring the stack up with the job of a settings file, and take it down at the end.

    Args:
        conf: The settings file.
        overrides: Over it, by dotted name.
        folder: Of all files; what an earlier run has left in it is ended and removed.
        task_managers: How many, of two slots each.
        progress: Called with one line per step.

    Raises:
        NotReadyError: see ``check``, or a part did not start.
        JobError: Flink refused the job.
    """
    check(job_settings.load(conf, overrides))
    folder = folder.absolute()
    jars.fetch(progress)
    _clear(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as opened:
        progress("starting Kafka")
        broker = LinkedBroker(folder / "kafka")
        to_broker = opened.enter_context(Link(broker.link_port, broker.proxy_port))
        opened.enter_context(broker)
        own = _own(overrides, folder) | {"kafka.bootstrap_servers": broker.bootstrap}
        settings = job_settings.load(conf, own)
        create_topics(broker.bootstrap, partitions_of(settings.topics))
        components: dict[str, Component] = {"broker": _broker(broker)}
        links, seen = {"broker": to_broker}, {"kafka.bootstrap_servers": to_broker.address}
        if not settings.model.embedded:
            progress("starting the model server")
            server, link = _server(opened, settings, folder)
            components["server"], links["server"] = server, link
            seen["model.server"] = link.address
        progress("starting Flink")
        keeper = opened.enter_context(ZooKeeper(folder / "zookeeper"))
        Leftovers(folder).note("zookeeper", keeper.pid, str(folder / "zookeeper"))
        cluster = StandaloneCluster(folder / "flink")
        opened.callback(cluster.down)
        cluster.up(task_managers, _SLOTS, options=keeper.flink_options())
        package = submission.make_package(cluster, conf, own | seen)
        submitted = submission.submit_session(
            job_settings.load(conf, own | seen), package, cluster, progress=progress
        )
        job = RunningJob(submitted.job_id, FlinkRest(submitted.rest.address, _ANSWER_S))
        components["taskmanager"] = _task_manager(cluster, job, task_managers, package.code)
        components["jobmanager"] = _job_manager(cluster)
        checkpoints = Path(settings.flink.checkpoint_dir)
        yield Stack(settings, folder, components, links, checkpoints, cluster, job)


def _own(overrides: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Settings of a job that is hurt often; those given win."""
    return {
        "flink.checkpoint_interval": "3s",
        "flink.restart_attempts": 1_000_000,
        **overrides,
        "flink.checkpoint_dir": str(folder / "checkpoints"),
    }


def _clear(folder: Path) -> None:
    """End what a run that was killed has left, and remove its files."""
    if not folder.is_dir():
        return
    LinkedBroker(folder / "kafka").kill()
    StandaloneCluster(folder / "flink").down()
    Leftovers(folder).end()
    for name in ("kafka", "flink", "zookeeper", "checkpoints", "checkpoints.away"):
        shutil.rmtree(folder / name, ignore_errors=True)
        (folder / name).unlink(missing_ok=True)


def _broker(broker: LinkedBroker) -> Component:
    def pid() -> int | None:
        state = broker.status()
        return None if state is None else state.pid

    return _Part(pid, broker.start, "broker")


def _server(opened: ExitStack, settings: Settings, folder: Path) -> tuple[Component, Link]:
    model = settings.model
    log = folder / "model-server.log"
    server = ModelProcess(model.path, model.name, model.version, log)
    opened.enter_context(server)
    link = opened.enter_context(Link(server.port))

    def start() -> None:
        if server.pid() is None:
            server.start()
        Leftovers(folder).note("server", server.pid(), "model_server")

    start()
    return _Part(server.pid, start, "model server"), link


def _task_manager(cluster: StandaloneCluster, job: RunningJob, count: int, code: Path) -> Component:
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


def _job_manager(cluster: StandaloneCluster) -> Component:
    def pid() -> int | None:
        state = cluster.state()
        return None if state is None else state.processes["jobmanager"].pid

    return _Part(pid, cluster.restart_jobmanager, "JobManager")


def signal_process(pid: int, how: signal.Signals) -> None:
    """Send a signal to a process that may have ended; one that is killed is waited for."""
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        process.send_signal(how)
        if how == signal.SIGKILL:
            with suppress(psutil.TimeoutExpired):
                process.wait(10)
