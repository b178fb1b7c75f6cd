"""A standalone Flink cluster of the wheel's own scripts: one JobManager, some TaskManagers."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml

from jobs.environment import thread_mode_env
from jobs.runner import FlinkRest, JobError
from jobs.stack import HOST, free_port
from tests.support.waiting import wait_until

_START_S = 120.0
_STOP_S = 30.0


def _flink_home() -> Path:
    spec = find_spec("pyflink")
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent


class FlinkCluster:
    """A context manager that starts the cluster and ends each of its processes by its id.

    Args:
        folder: For its configuration, logs and temporary files.
        task_managers: How many.
        slots: Of each TaskManager.
    """

    def __init__(self, folder: Path, *, task_managers: int, slots: int) -> None:
        self._folder = folder
        self._task_managers = task_managers
        self._slots = slots
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Self:
        port = free_port()
        self._configure(port, free_port(other_than=port))
        self.rest = FlinkRest(f"{HOST}:{port}")
        try:
            self._start("jobmanager", "jobmanager.sh")
            for number in range(self._task_managers):
                name = f"tm-{number}"
                self._start(name, "taskmanager.sh", f"-Dtaskmanager.resource-id={name}")
            wait_until(self._is_complete, _START_S, f"a Flink cluster, see {self._folder}/logs")
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end()

    def kill(self, task_manager: str) -> None:
        """End a TaskManager as a lost machine would."""
        process = self._processes[task_manager]
        process.kill()
        process.wait(_STOP_S)

    def pid(self, task_manager: str) -> int:
        return self._processes[task_manager].pid

    def task_managers_of(self, job_id: str) -> set[str]:
        """The TaskManagers that run a task of a job."""
        vertices = self.rest.get(f"/jobs/{job_id}")["vertices"]
        found = [self.rest.get(f"/jobs/{job_id}/vertices/{v['id']}") for v in vertices]
        return {subtask["taskmanager-id"] for vertex in found for subtask in vertex["subtasks"]}

    def _is_complete(self) -> bool:
        for name, process in self._processes.items():
            assert process.poll() is None, f"{name} ended, see {self._folder}/logs"
        try:
            return bool(self.rest.get("/overview")["taskmanagers"] == self._task_managers)
        except JobError:
            return False

    def _configure(self, rest_port: int, rpc_port: int) -> None:
        conf = self._folder / "conf"
        conf.mkdir(parents=True)
        for name in ("logs", "tmp"):
            (self._folder / name).mkdir()
        theirs = _flink_home() / "conf"
        for name in ("log4j-console.properties", "log4j.properties"):
            shutil.copy(theirs / name, conf)
        options = _flat(yaml.safe_load((theirs / "config.yaml").read_text()))
        options |= {
            "jobmanager.rpc.address": HOST,
            "jobmanager.rpc.port": rpc_port,
            "jobmanager.bind-host": HOST,
            "jobmanager.memory.process.size": "1024m",
            "taskmanager.bind-host": HOST,
            "taskmanager.host": HOST,
            "taskmanager.numberOfTaskSlots": self._slots,
            "taskmanager.memory.process.size": "1536m",
            "taskmanager.load-balance.mode": "SLOTS",
            "rest.address": HOST,
            "rest.bind-address": HOST,
            "rest.port": rest_port,
            "heartbeat.interval": "1 s",
            "heartbeat.timeout": "10 s",
            "metrics.fetcher.update-interval": "500 ms",
            "io.tmp.dirs": str(self._folder / "tmp"),
            "python.executable": sys.executable,
            "python.client.executable": sys.executable,
        }
        (conf / "config.yaml").write_text(yaml.safe_dump(options))

    def _start(self, name: str, script: str, *arguments: str) -> None:
        variables = {
            "FLINK_CONF_DIR": str(self._folder / "conf"),
            "FLINK_LOG_DIR": str(self._folder / "logs"),
            "FLINK_PID_DIR": str(self._folder / "tmp"),
        }
        command = [str(_flink_home() / "bin" / script), "start-foreground", *arguments]
        with (self._folder / "logs" / f"{name}.out").open("wb") as console:
            self._processes[name] = subprocess.Popen(
                command,
                env=os.environ | thread_mode_env() | variables,
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=subprocess.STDOUT,
            )

    def _end(self) -> None:
        for process in reversed(self._processes.values()):
            process.terminate()
        for process in self._processes.values():
            try:
                process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(_STOP_S)


def _flat(node: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as dotted ones."""
    flat: dict[str, Any] = {}
    for name, value in node.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat
