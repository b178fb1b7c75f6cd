"""Model servers as processes of their own: the real one, and one that misbehaves when told to."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Self

from jobs.environment import ROOT

_STOP_S = 20.0


class _ServerProcess:
    """A process that prints ``ready port=N``; a context manager that starts and ends it."""

    def __init__(self, command: list[str], log: Path) -> None:
        self._command = command
        self._log = log
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def process(self) -> subprocess.Popen[str]:
        assert self._process is not None, "not started"
        return self._process

    def start(self) -> None:
        with self._log.open("a") as log:
            self._process = subprocess.Popen(
                self._command,
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        ready = re.match(r"ready port=(\d+)", self.read_line())
        assert ready is not None, f"the server did not start, see {self._log}"
        self.port = int(ready[1])

    def read_line(self) -> str:
        """What it prints next; empty if it ended."""
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.process.pid, number)

    def kill(self) -> None:
        """End it as a crash would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(_STOP_S)
            self._close()

    def stop(self) -> None:
        """End it in order; a hung one is killed."""
        if self._process is None:
            return
        self.signal(signal.SIGCONT) if self._process.poll() is None else None
        self._process.terminate()
        try:
            self._process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(_STOP_S)
        self._close()

    def _close(self) -> None:
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()
        self._process = None


class ModelServerProcess(_ServerProcess):
    """``python -m model_server``."""

    def __init__(self, models: Path, log: Path, port: int = 0, name: str = "fraud") -> None:
        command = [sys.executable, "-m", "model_server", "--models-dir", str(models)]
        super().__init__([*command, "--model-name", name, "--port", str(port)], log)


class GatewayProcess(_ServerProcess):
    """``streamscore gateway`` with a file and changes to it."""

    def __init__(self, conf: Path, log: Path, changes: dict[str, object]) -> None:
        command = [sys.executable, "-m", "jobs.cli", "gateway", str(conf)]
        for name, value in ({"gateway.port": 0} | changes).items():
            command += ["--set", f"{name}={value}"]
        super().__init__(command, log)


class FaultyServerProcess(_ServerProcess):
    """``tests/support/faulty_server.py``."""

    def __init__(self, log: Path, port: int = 0) -> None:
        script = Path(__file__).with_name("faulty_server.py")
        super().__init__([sys.executable, str(script), str(port)], log)

    def behave(self, how: str) -> None:
        """Answer so from the next call on; returns when it does."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{how}\n")
        self.process.stdin.flush()
        assert self.read_line() == f"{how}\n"
