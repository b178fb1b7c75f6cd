"""``streamscore submit``: a packaged job on a standalone cluster of this machine."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jobs import settings as job_settings
from jobs import token_urls
from jobs.cluster import package as packages
from jobs.cluster.client import FlinkRunClient
from jobs.cluster.entry import tell
from jobs.cluster.package import Package
from jobs.cluster.standalone import ClusterError, StandaloneCluster, running_jobs
from jobs.environment import ROOT, NotReadyError
from jobs.flink_rest import FlinkRest, JobError
from jobs.jars import silent
from jobs.running_job import RunningJob
from jobs.settings import Settings

PYTHON_DRIVER = "org.apache.flink.client.python.PythonDriver"
RUNNING_S = 300.0


@dataclass(frozen=True)
class JobRecord:
    """What is kept of a submitted job, so that it can be upgraded and gone back to.

    Attributes:
        name: The job's.
        job_id: Flink's.
        package: What was submitted.
        savepoint: What it was started from; empty if from nothing.
    """

    name: str
    job_id: str
    package: Package
    savepoint: str = ""

    def settings(self) -> Settings:
        """The settings it runs with."""
        return job_settings.load(self.package.conf, self.package.overrides)

    def write(self, cluster: StandaloneCluster) -> None:
        """Keep it with the cluster."""
        path = _record_path(cluster, self.name)
        path.parent.mkdir(parents=True, exist_ok=True)
        tell(path, asdict(self) | {"package": _plain(self.package)})

    @classmethod
    def read(cls, cluster: StandaloneCluster, name: str) -> JobRecord:
        """The job of that name.

        Raises:
            NotReadyError: it was not submitted to this cluster.
        """
        try:
            document = json.loads(_record_path(cluster, name).read_text(encoding="utf-8"))
        except FileNotFoundError as exc:
            raise NotReadyError(
                f"no job {name!r} was submitted to the cluster in {cluster.folder}",
                "run: streamscore submit",
            ) from exc
        stored = document.pop("package")
        return cls(**document, package=Package(**stored | {"folder": Path(stored["folder"])}))


def _record_path(cluster: StandaloneCluster, name: str) -> Path:
    return cluster.folder / "jobs" / f"{name}.json"


def _plain(package: Package) -> dict[str, Any]:
    return asdict(package) | {"folder": str(package.folder)}


def make_package(
    cluster: StandaloneCluster,
    conf: Path,
    overrides: Mapping[str, Any] | None = None,
    root: Path = ROOT,
) -> Package:
    """Pack a job into the cluster's folder of packages, with the code in a folder."""
    return packages.make(conf, overrides, root=root, folder=cluster.folder / "packages")


def submit_session(
    settings: Settings,
    package: Package,
    cluster: StandaloneCluster,
    savepoint: str = "",
    progress: Callable[[str], None] = silent,
) -> RunningJob:
    """Submit to a session cluster by ``flink run`` and wait until every task runs.

    Args:
        settings: The job's.
        package: The same job, packed.
        cluster: A running one; TaskManagers that ran other code are replaced.
        savepoint: Where its state comes from; empty starts without.
        progress: Called with one line per step.

    Raises:
        ClusterError: it does not run, is for one job alone, has too few slots, or runs this job or
            other code already.
        NotReadyError: it may not ask for the job's tokens.
        JobError: Flink refused the job, or it failed.
    """
    state = cluster.session()
    _check_not_running(settings.name, FlinkRest(state.rest))
    token_urls.check(settings, FlinkRest(state.rest))
    _check_slots(settings, state.slots * len(state.task_managers))
    with FlinkRunClient(package, cluster) as client:
        progress("giving the TaskManagers the code")
        cluster.use_code(package.code)
        progress("building the job")
        client.wait_ready()
        progress("submitting")
        job = RunningJob(client.go(savepoint), cluster.rest)
    JobRecord(settings.name, job.job_id, package, savepoint).write(cluster)
    progress(f"waiting for the tasks to run, {job.rest.url}")
    job.wait_running(RUNNING_S)
    return job


def submit_application(
    settings: Settings,
    package: Package,
    cluster: StandaloneCluster,
    savepoint: str = "",
    progress: Callable[[str], None] = silent,
    *,
    task_managers: int = 1,
    slots: int = 1,
) -> RunningJob:
    """Start a cluster for this job alone, by ``standalone-job.sh``, and wait until every task runs.

    Args:
        settings: See ``submit_session``.
        package: See there.
        cluster: One that does not run; it ends with ``StandaloneCluster.down``.
        savepoint: See there.
        progress: See there.
        task_managers: How many to start.
        slots: Of each.

    Raises:
        ClusterError: it runs already or has too few slots.
        JobError: the job failed.
    """
    _check_slots(settings, slots * task_managers)
    progress("starting Flink")
    entry = package.code / "jobs" / "cluster" / "entry.py"
    chosen = ["--job-classname", PYTHON_DRIVER]
    chosen += ["--fromSavepoint", savepoint] if savepoint else []
    arguments = [*chosen, "-py", str(entry), "--packed-job", str(package.job)]
    options = token_urls.cluster_options(settings)
    variables = token_urls.variables(settings, package.jars)
    cluster.up_application(arguments, package.code, task_managers, slots, options, variables)
    progress(f"waiting for the tasks to run, {cluster.rest.url}")
    job = RunningJob(cluster.wait_job(RUNNING_S), cluster.rest)
    JobRecord(settings.name, job.job_id, package, savepoint).write(cluster)
    job.wait_running(RUNNING_S)
    return job


def _check_not_running(name: str, rest: FlinkRest) -> None:
    if name in (jobs := running_jobs(rest)).values():
        ids = [job_id for job_id, running in jobs.items() if running == name]
        raise ClusterError(
            f"{name} runs already on this cluster as {', '.join(ids)}",
            "use streamscore upgrade, or cancel it first",
        )


def _check_slots(settings: Settings, slots: int) -> None:
    wanted = settings.flink.parallelism
    if wanted > slots:
        raise ClusterError(
            f"flink.parallelism is {wanted}, the cluster has {slots} slots",
            f"start more: streamscore cluster up --taskmanagers {wanted}",
        )


__all__ = ["JobError", "JobRecord", "make_package", "submit_application", "submit_session"]
