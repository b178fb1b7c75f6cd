"""A standalone cluster for the length of a test."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from jobs.cluster.standalone import StandaloneCluster
from jobs.ports import free_port
from tests.support.monitoring import reporter


class FlinkCluster(StandaloneCluster):
    """A context manager that starts the cluster and ends each of its processes by its id.

    Args:
        folder: For its configuration, logs and temporary files.
        task_managers: How many.
        slots: Of each TaskManager.

    Attributes:
        metrics_ports: Each of its processes shows Prometheus' metrics at one of them.
    """

    def __init__(self, folder: Path, *, task_managers: int, slots: int) -> None:
        super().__init__(folder)
        self._task_managers = task_managers
        self._slots = slots
        self.metrics_ports = [free_port() for _ in range(task_managers + 1)]

    def __enter__(self) -> Self:
        options = {"metrics.fetcher.update-interval": "500 ms"} | reporter(self.metrics_ports)
        self.up(self._task_managers, self._slots, options=options)
        return self

    def __exit__(self, *_: object) -> None:
        self.down()
