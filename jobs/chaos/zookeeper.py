"""The ZooKeeper that Flink ships, one process: a JobManager that died goes on with its jobs."""

from __future__ import annotations

import signal
import socket
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import psutil

from jobs.cluster.flink_home import flink_home
from jobs.environment import QUICK_JVM, NotReadyError, java
from jobs.ports import HOST, free_port
from jobs.processes import end

_MAIN = "org.apache.flink.shaded.zookeeper3.org.apache.zookeeper.server.ZooKeeperServerMain"
_CONF = """\
tickTime=1000
dataDir={data}
clientPort={port}
clientPortAddress={host}
admin.enableServer=false
"""
_START_S = 60.0
_STOP_S = 10.0
_POLL_S = 0.05
SESSION = "8 s"
"""How long a JobManager may be silent and still lead."""


class ZooKeeper:
    """One server; a context manager that starts and ends it.

    Args:
        folder: For its configuration, data and log.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder.absolute()
        self._port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """Its process id; none if it was not started."""
        return None if self._process is None else self._process.pid

    def flink_options(self) -> dict[str, Any]:
        """What a cluster needs to know of it."""
        return {
            "high-availability.type": "zookeeper",
            "high-availability.zookeeper.quorum": f"{HOST}:{self._port}",
            "high-availability.zookeeper.client.session-timeout": SESSION,
            "high-availability.storageDir": (self._folder / "ha").as_uri(),
            "high-availability.cluster-id": "/chaos",
        }

    def __enter__(self) -> Self:
        self._folder.mkdir(parents=True, exist_ok=True)
        conf = self._folder / "zoo.cfg"
        text = _CONF.format(data=self._folder / "data", port=self._port, host=HOST)
        conf.write_text(text, encoding="utf-8")
        jars = [*flink_home().glob("lib/flink-dist-*.jar"), *flink_home().glob("lib/log4j-*.jar")]
        command = [str(java()), QUICK_JVM, "-Xmx128m", "-cp", ":".join(map(str, jars)), _MAIN]
        with (self._folder / "zookeeper.log").open("wb") as log:
            self._process = subprocess.Popen(
                [*command, str(conf)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            self._wait_answers(self._process)
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def _wait_answers(self, process: subprocess.Popen[bytes]) -> None:
        deadline_s = time.monotonic() + _START_S
        while not self._answers():
            if process.poll() is not None or time.monotonic() > deadline_s:
                raise NotReadyError(
                    "ZooKeeper did not start", f"see {self._folder / 'zookeeper.log'}"
                )
            time.sleep(_POLL_S)

    def _answers(self) -> bool:
        with suppress(OSError), socket.create_connection((HOST, self._port), timeout=1) as asked:
            asked.sendall(b"srvr")
            return bool(asked.recv(1))
        return False

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            with suppress(psutil.NoSuchProcess):
                end(psutil.Process(process.pid), signal.SIGTERM, _STOP_S)
            process.wait(_STOP_S)
