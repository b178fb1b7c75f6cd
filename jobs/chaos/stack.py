"""All that a job needs, of its own, at loopback only, and with links that can be hurt."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs import jars
from jobs import settings as job_settings
from jobs.chaos import components
from jobs.chaos.broker import Brokers
from jobs.chaos.clock import Clock
from jobs.chaos.components import Component, Way
from jobs.chaos.leftovers import Leftovers
from jobs.chaos.proxy import Link
from jobs.chaos.zookeeper import ZooKeeper
from jobs.cluster import submission
from jobs.cluster.standalone import StandaloneCluster
from jobs.demo.model_process import ModelProcess
from jobs.environment import BUILD, NotReadyError
from jobs.flink_rest import FlinkRest, JobError
from jobs.kafka_broker import KafkaBroker
from jobs.kafka_topics import create_topics, partitions_of
from jobs.running_job import RunningJob
from jobs.settings import Settings

CHAOS = BUILD / "chaos"
_LOOPBACK = ("127.0.0.1", "localhost", "[::1]", "::1")
_SLOTS = 2
"""Of a TaskManager, so that the others can take what a lost one ran."""

_ANSWER_S = 5.0
_WORKERS = 2
"""Of the model server: one can be lost."""

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Size:
    """How many of what a stack has.

    Attributes:
        task_managers: Of two slots each.
        brokers: Each has a replica of everything.
        with_clock: Whether the TaskManagers' clock can be set off, if there is a C compiler.
    """

    task_managers: int = 2
    brokers: int = 1
    with_clock: bool = False


@dataclass
class Stack:
    """What runs.

    Attributes:
        settings: The job's, with addresses that lead around the links.
        folder: Of all files.
        brokers: Kafka's.
        components: Processes by name: broker, jobmanager, taskmanager, and server and worker.
        links: Ways that can be hurt, by what is at their end: broker, and server.
        checkpoints: The folder of the job's checkpoints.
        cluster: Where the job runs.
        job: The running job.
        clock: What the TaskManagers see; none without a C compiler.
    """

    settings: Settings
    folder: Path
    brokers: Brokers
    components: dict[str, Component]
    links: dict[str, Way]
    checkpoints: Path
    cluster: StandaloneCluster
    job: RunningJob
    clock: Clock | None

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
    size: Size = Size(),
    progress: Progress = jars.silent,
) -> Iterator[Stack]:
    """Bring the stack up with the job of a settings file, and take it down at the end.

    Args:
        conf: The settings file.
        overrides: Over it, by dotted name.
        folder: Of all files; what an earlier run has left in it is ended and removed.
        size: How many of what.
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
        brokers = opened.enter_context(Brokers.in_folder(folder / "kafka", size.brokers))
        own = _own(overrides, folder) | {"kafka.bootstrap_servers": brokers.bootstrap}
        settings = job_settings.load(conf, own)
        create_topics(brokers.bootstrap, partitions_of(settings.topics))
        parts: dict[str, Component] = {"broker": components.broker(brokers, settings.topics.events)}
        links: dict[str, Way] = {"broker": brokers}
        seen = {"kafka.bootstrap_servers": brokers.address}
        if not settings.model.embedded:
            progress("starting the model server")
            server, link = _server(opened, settings, folder)
            parts["server"] = components.supervised(server, folder)
            parts["worker"] = components.worker(server)
            links["server"] = link
            seen["model.server"] = link.address
        progress("starting Flink")
        keeper = opened.enter_context(ZooKeeper(folder / "zookeeper"))
        Leftovers(folder).note("zookeeper", keeper.pid, str(folder / "zookeeper"))
        clock = Clock.made_in(folder) if size.with_clock else None
        variables = {} if clock is None else clock.variables()
        cluster = StandaloneCluster(folder / "flink", variables)
        opened.callback(cluster.down)
        cluster.up(size.task_managers, _SLOTS, options=keeper.flink_options())
        package = submission.make_package(cluster, conf, own | seen)
        submitted = submission.submit_session(
            job_settings.load(conf, own | seen), package, cluster, progress=progress
        )
        job = RunningJob(submitted.job_id, FlinkRest(submitted.rest.address, _ANSWER_S))
        parts["taskmanager"] = components.task_manager(
            cluster, job, size.task_managers, package.code
        )
        parts["jobmanager"] = components.job_manager(cluster)
        checkpoints = Path(settings.flink.checkpoint_dir)
        yield Stack(settings, folder, brokers, parts, links, checkpoints, cluster, job, clock)


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
    for state in (folder / "kafka").glob("*/stack.json"):
        KafkaBroker(state.parent).kill()
    StandaloneCluster(folder / "flink").down()
    Leftovers(folder).end()
    for name in ("kafka", "flink", "zookeeper", "checkpoints", "checkpoints.away"):
        shutil.rmtree(folder / name, ignore_errors=True)
        (folder / name).unlink(missing_ok=True)


def _server(opened: ExitStack, settings: Settings, folder: Path) -> tuple[ModelProcess, Link]:
    model = settings.model
    log = folder / "model-server.log"
    server = ModelProcess(model.path, model.name, model.version, log, workers=_WORKERS)
    opened.enter_context(server)
    Leftovers(folder).note("server", server.pid(), "model_server")
    return server, opened.enter_context(Link(server.port))
