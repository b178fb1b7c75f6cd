"""Flink's scripts and configuration, as the wheel of PyFlink brings them."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from jobs.environment import NotReadyError
from jobs.jars import flink_jars
from jobs.ports import HOST
from jobs.profiles import section


def flink_home() -> Path:
    """The folder with ``bin/``, ``conf/`` and ``lib/``.

    Raises:
        NotReadyError: PyFlink is not installed, or its jar is not where clusters look for it.
    """
    spec = find_spec("pyflink")
    if spec is None or spec.origin is None:
        raise NotReadyError("PyFlink is not installed", "run: make setup")
    home = Path(spec.origin).parent
    if not list((home / "lib").glob("flink-python-*.jar")):
        raise NotReadyError(
            f"flink-python's jar is not in {home / 'lib'}: one job per TaskManager would run",
            "run: make setup",
        )
    return home


def write_configuration(
    folder: Path, rest_port: int, rpc_port: int, options: Mapping[str, Any]
) -> None:
    """Write a cluster's ``conf/`` below a folder: the wheel's, loopback only, conf/flink.yaml's.

    Args:
        folder: The cluster's; ``logs/`` and ``tmp/`` are made too.
        rest_port: Of the web page and the REST API.
        rpc_port: Of the JobManager for its TaskManagers.
        options: Win over all others.
    """
    for name in ("conf", "logs", "tmp"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    theirs = flink_home() / "conf"
    for properties in theirs.glob("log4j*.properties"):
        shutil.copy(properties, folder / "conf")
    chosen = _flat(yaml.safe_load((theirs / "config.yaml").read_text(encoding="utf-8")))
    chosen |= section("cluster")
    chosen |= {
        "jobmanager.rpc.address": HOST,
        "jobmanager.rpc.port": rpc_port,
        "jobmanager.bind-host": HOST,
        "taskmanager.bind-host": HOST,
        "taskmanager.host": HOST,
        "rest.address": HOST,
        "rest.bind-address": HOST,
        "rest.port": rest_port,
        "io.tmp.dirs": str(folder / "tmp"),
        "python.executable": sys.executable,
        "python.client.executable": sys.executable,
    }
    text = yaml.safe_dump(chosen | dict(options))
    (folder / "conf" / "config.yaml").write_text(text, encoding="utf-8")


def write_library(folder: Path) -> Path:
    """A folder of links to Flink's jars and the connectors, for the class path of a TaskManager.

    A job brings the connectors too, but loads its own copy of each class, cold, at every start.
    """
    library = folder / "lib"
    library.mkdir(parents=True, exist_ok=True)
    wanted = {jar.name: jar for jar in [*(flink_home() / "lib").glob("*.jar"), *flink_jars()]}
    for link in library.iterdir():
        if link.name not in wanted:
            link.unlink()
    for name, jar in wanted.items():
        if (library / name).resolve() != jar.resolve():
            (library / name).unlink(missing_ok=True)
            (library / name).symlink_to(jar.absolute())
    return library


def _flat(node: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as dotted ones."""
    flat: dict[str, Any] = {}
    for name, value in node.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat
