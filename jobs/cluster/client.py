"""``flink run`` as a process that is ready before it is needed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any, Self

import psutil

from jobs.cluster.entry import tell
from jobs.cluster.flink_home import flink_home
from jobs.cluster.package import Package
from jobs.cluster.standalone import StandaloneCluster
from jobs.environment import BUILD, thread_mode_env
from jobs.flink_rest import JobError
from jobs.processes import end

_READY_S = 300.0
_SUBMIT_S = 120.0
_STOP_S = 10.0
_POLL_S = 0.02
_NICE = "5"
"""Building a job takes seconds of CPU, and the job that runs meanwhile needs them more."""


class FlinkRunClient:
    """Submits a package to a session cluster; a context manager that ends what it started.

    It builds the job at once and submits it when ``go`` is called: starting the JVM and Python,
    planning and compiling are done by then.

    Args:
        package: What is submitted.
        cluster: Where to.
    """

    def __init__(self, package: Package, cluster: StandaloneCluster) -> None:
        self._package = package
        self._cluster = cluster
        self._log = cluster.folder / "logs" / f"submit-{package.sha256[:16]}.log"

    def __enter__(self) -> Self:
        self._told = Path(tempfile.mkdtemp(prefix="submit-", dir=self._cluster.folder))
        command = ["nice", "-n", _NICE, flink_command(), "run", "-d", *entry_words(self._package)]
        command += ["--told", str(self._told)]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command,
                env=environment(self._cluster, self._package.code),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            family = psutil.Process(self._process.pid).children(recursive=True)
            for process in (psutil.Process(self._process.pid), *family):
                end(process, signal.SIGTERM, _STOP_S)
        self._process.wait(_STOP_S)
        shutil.rmtree(self._told, ignore_errors=True)

    def wait_ready(self) -> None:
        """Wait until the job is built.

        Raises:
            JobError: it cannot be, or not in time.
        """
        self._wait_file("ready", _READY_S)

    def rehearse(self, savepoint: str, parallelism: int) -> str:
        """Submit the job without outputs and checkpoints.

        Args:
            savepoint: Where its state comes from.
            parallelism: How many subtasks.

        Returns:
            The rehearsal's id.

        Raises:
            JobError: Flink refused it, or did not take it in time.
        """
        tell(self._told / "rehearse", {"savepoint": savepoint, "parallelism": parallelism})
        return str(self._wait_file("rehearsing", _READY_S)["job_id"])

    def go(self, savepoint: str = "") -> str:
        """Submit the job.

        Args:
            savepoint: Where its state comes from; empty starts without.

        Returns:
            The job's id.

        Raises:
            JobError: Flink refused it, or did not take it in time.
        """
        tell(self._told / "go", {"savepoint": savepoint})
        return str(self._wait_file("submitted", _SUBMIT_S)["job_id"])

    def _wait_file(self, name: str, timeout_s: float) -> dict[str, Any]:
        deadline_s = time.monotonic() + timeout_s
        path = self._told / name
        while not path.exists():
            ended = self._process.poll() is not None and not path.exists()
            if ended or time.monotonic() > deadline_s:
                what = "ended" if ended else f"was not {name} within {timeout_s:.0f} s"
                raise JobError(f"flink run {what}: {self._last_words()}")
            time.sleep(_POLL_S)
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return found

    def _last_words(self) -> str:
        lines = [line for line in self._log.read_text(errors="replace").splitlines() if line]
        telling = [line for line in lines if "Error" in line or "Caused by" in line]
        return (telling or lines or ["it left no error"])[-1] + f" (see {self._log})"


def flink_command() -> str:
    """Flink's own command."""
    return str(flink_home() / "bin" / "flink")


def entry_words(package: Package) -> list[str]:
    """What ``flink run`` is told to run a package."""
    entry = package.code / "jobs" / "cluster" / "entry.py"
    return ["-py", str(entry), "--packed-job", str(package.job)]


def environment(cluster: StandaloneCluster, code: Path) -> dict[str, str]:
    """The variables of a ``flink`` command for a cluster, with the code in a folder."""
    variables = {
        "FLINK_CONF_DIR": str(cluster.folder / "conf"),
        "FLINK_LOG_DIR": str(cluster.folder / "logs"),
        "STREAMSCORE_BUILD": str(BUILD.absolute()),
    }
    return os.environ | thread_mode_env(code) | variables
