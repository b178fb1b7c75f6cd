"""Submits a job: to a mini-cluster inside this process' JVM, or to a cluster that is there."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jobs import token_urls
from jobs.environment import BUILD, NotReadyError, thread_mode_env
from jobs.flink_rest import FlinkRest, JobError, cause_of
from jobs.job_jars import jars_of
from jobs.ports import HOST, free_port
from jobs.running_job import RunningJob
from jobs.settings import Settings
from jobs.starting import EMPTY, Start


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
    jars = jars_of(settings)
    prepare()
    os.environ.update(token_urls.variables(settings, jars))
    from py4j.protocol import Py4JJavaError
    from pyflink.java_gateway import get_gateway

    from jobs import pipeline

    address = target or f"{HOST}:{settings.flink.web_port or free_port()}"
    if target is not None:
        _check_reachable(target)
        token_urls.check(settings, FlinkRest(target))
    given = _target_options(address, jars, remote=target is not None) | dict(options or {})
    configuration = pipeline.flink_configuration(settings, given)
    env = _environment(configuration, remote=target is not None)
    if target is None:
        token_urls.allow(settings, get_gateway().jvm)
    try:
        build(env)
        client = env.execute_async(settings.name)
    except Py4JJavaError as exc:
        raise JobError(f"Flink refused the job: {cause_of(str(exc))}") from exc
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


def _target_options(address: str, jars: Sequence[Path], *, remote: bool) -> dict[str, str]:
    host, _, port = address.rpartition(":")
    options = {
        "pipeline.jars": ";".join(jar.absolute().as_uri() for jar in jars),
        "rest.address": host,
        "rest.port": port,
    }
    if remote:
        return options | {"execution.target": "remote", "execution.attached": "false"}
    return options | {
        "rest.bind-address": host,
        "rest.bind-port": port,
        "jobmanager.bind-host": host,
        "taskmanager.bind-host": host,
        "python.executable": sys.executable,  # a cluster's machines have a path of their own
    }


def _check_reachable(target: str) -> None:
    try:
        FlinkRest(target).get("/overview")
    except JobError as exc:
        raise NotReadyError(f"no Flink cluster answers at {target}", "start one") from exc
