"""Servers as child processes that can be stopped and started again on their port."""

from __future__ import annotations

import select
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from jobs.environment import ROOT, NotReadyError
from jobs.ports import HOST

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 15.0
_READY = b"ready port="


class ModelServerError(NotReadyError):
    """A server did not start."""


class ServerProcess:
    """A Python module that prints ``ready port=N``; a context manager that starts and stops it.

    Args:
        what: Its name in errors.
        arguments: Of ``python -m``; ``{port}`` stands for the port, 0 takes a free one.
        log: File for what it writes to stderr, appended to.
    """

    def __init__(self, what: str, arguments: Sequence[str], log: Path) -> None:
        self._what = what
        self._arguments = arguments
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()  # or a stop during a start would leave it running
        self.port = 0

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def address(self) -> str:
        """host:port for clients; the same after a restart."""
        return f"{HOST}:{self.port}"

    @property
    def is_serving(self) -> bool:
        """Whether it is started, ready and has not ended."""
        return self._process is not None and self._process.poll() is None

    def pid(self) -> int | None:
        """Its process id; none if it does not run."""
        process = self._process
        return process.pid if process is not None and process.poll() is None else None

    def start(self) -> None:
        """Start it and wait until it serves.

        Raises:
            ModelServerError: it ended, or was not ready within a minute.
        """
        with self._lock:
            self._process = self._launch()

    def _launch(self) -> subprocess.Popen[bytes]:
        self._log.parent.mkdir(parents=True, exist_ok=True)
        arguments = [text.replace("{port}", str(self.port)) for text in self._arguments]
        with self._log.open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", *arguments],
                bufsize=0,  # or select() misses a line that a read of the one before took along
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for us; we then stop it in our own order
            )
        try:
            self.port = self._wait_ready(process)
        except BaseException:
            _end(process, 0.0)
            raise
        return process

    def kill(self) -> None:
        """End it at once, as a crash would; does nothing if it does not run."""
        with self._lock:
            process, self._process = self._process, None
            if process is not None:
                process.kill()
                _end(process, STOP_TIMEOUT_S)

    def stop(self) -> None:
        """Stop it: SIGTERM, a bounded wait, then SIGKILL; does nothing if it does not run."""
        with self._lock:
            process, self._process = self._process, None
            if process is not None:
                _end(process, STOP_TIMEOUT_S)

    def _wait_ready(self, process: subprocess.Popen[bytes]) -> int:
        deadline_s = time.monotonic() + START_TIMEOUT_S
        assert process.stdout is not None
        while (left_s := deadline_s - time.monotonic()) > 0:
            if not select.select([process.stdout], [], [], left_s)[0]:
                break
            line = process.stdout.readline()
            if line.startswith(_READY):
                return int(line.removeprefix(_READY))
            if not line:
                raise ModelServerError(f"{self._what} ended at its start", f"see {self._log}")
        raise ModelServerError(
            f"{self._what} was not ready within {START_TIMEOUT_S:.0f} s", f"see {self._log}"
        )


class ModelProcess(ServerProcess):
    """``python -m model_server``.

    Args:
        models_dir: Root of the model repository.
        name: The model's name.
        version: Its version; none serves the newest, whenever it comes.
        log: See ``ServerProcess``.
        workers: Processes that answer.
    """

    def __init__(
        self, models_dir: Path, name: str, version: int | None, log: Path, *, workers: int = 1
    ) -> None:
        arguments = ["model_server", "--models-dir", str(models_dir), "--model-name", name]
        arguments += ["--host", HOST, "--port", "{port}"]
        arguments += [] if workers == 1 else ["--workers", str(workers)]
        arguments += [] if version is None else ["--model-version", str(version)]
        super().__init__("the model server", arguments, log)


def _end(process: subprocess.Popen[bytes], timeout_s: float) -> None:
    process.terminate()
    try:
        process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdout is not None:
        process.stdout.close()
