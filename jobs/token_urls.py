"""What a JVM must be started with so that Kafka's client in it can log in by a token.

The client asks only at URLs that a system property allows. And it registers itself with the whole
JVM, so that of two class loaders of Flink's, as jobs and JobManagers have their own, only the first
could log in: its classes must be those of the JVM, by the class path. Flink's scripts and PyFlink
take additions to that from ``HADOOP_CLASSPATH`` alone, whatever they are.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.environment import NotReadyError
from jobs.job_jars import jars_of
from jobs.profiles import section
from jobs.sections.kafka import OAUTH_PROPERTY
from jobs.settings import Settings

if TYPE_CHECKING:
    from jobs.flink_rest import FlinkRest

_OPTIONS = ("env.java.opts.jobmanager", "env.java.opts.taskmanager")
"""Of a cluster; Flink adds them to its own, which those of ``env.java.opts.all`` would replace."""

_CLASS_PATH = "HADOOP_CLASSPATH"
_NEEDED = ("flink-sql-connector-kafka-", "jackson-databind-", "jose4j-")


def java_option(settings: Settings) -> str:
    """The option of a JVM that runs the job; empty if it needs no token."""
    url = settings.kafka.token_url
    return f"-D{OAUTH_PROPERTY}={url}" if url else ""


def cluster_options(settings: Settings) -> dict[str, str]:
    """Options of a cluster for this job alone, beside those of conf/flink.yaml."""
    if not (option := java_option(settings)):
        return {}
    known = section("cluster")
    return {name: f"{known.get(name, '')} {option}".strip() for name in _OPTIONS}


def variables(settings: Settings, jars: Iterable[Path]) -> dict[str, str]:
    """The environment of a JVM that runs the job with these jars; empty if it needs no token."""
    if not settings.kafka.token_url:
        return {}
    known = [part for part in os.environ.get(_CLASS_PATH, "").split(os.pathsep) if part]
    added = [str(jar.absolute()) for jar in jars]
    return {_CLASS_PATH: os.pathsep.join(dict.fromkeys([*known, *added]))}


def allow(settings: Settings, jvm: Any) -> None:
    """Set the property in a JVM that runs already, beside the URLs of other jobs.

    Raises:
        NotReadyError: it was started without ``variables``.
    """
    if not (url := settings.kafka.token_url):
        return
    system = jvm.java.lang.System
    if not _has_jars(system.getProperty("java.class.path").split(os.pathsep)):
        raise NotReadyError(
            "this process' JVM was started for a job without a Kafka login by token",
            "start the job in a process of its own",
        )
    known = [u for u in (system.getProperty(OAUTH_PROPERTY) or "").split(",") if u]
    system.setProperty(OAUTH_PROPERTY, ",".join(dict.fromkeys([*known, url])))


def check(settings: Settings, rest: FlinkRest) -> None:
    """See that a cluster allows the job's URL.

    Raises:
        NotReadyError: it does not.
        JobError: it does not answer.
    """
    if not (url := settings.kafka.token_url):
        return
    found = rest.get("/jobmanager/environment")
    if not _has_jars(found["classpath"]):
        raise NotReadyError(
            f"the cluster at {rest.address} has no jars to log in at Kafka by a token",
            f"start it with {_CLASS_PATH}={variables(settings, jars_of(settings))[_CLASS_PATH]}",
        )
    told = (word for option in found["jvm"]["options"] for word in option.split())
    values = (w.partition("=")[2] for w in told if w.startswith(f"-D{OAUTH_PROPERTY}="))
    if {url, "*"}.isdisjoint(part for value in values for part in value.split(",")):
        raise NotReadyError(
            f"the cluster at {rest.address} may not ask {url} for tokens",
            f"start it with {' and '.join(_OPTIONS)} (below cluster in conf/flink.yaml) set to "
            f"{java_option(settings)}",
        )


def _has_jars(class_path: Sequence[str]) -> bool:
    names = [Path(entry).name for entry in class_path]
    return all(any(name.startswith(needed) for name in names) for needed in _NEEDED)
