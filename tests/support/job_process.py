"""A job in a process of its own, so that it can be hurt without hurting the tests.

As a script: takes a JSON of the settings' overrides, where to run and where its switch is, prints
``job ID ADDRESS`` when the job is submitted, and waits for a line on stdin to cancel it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any, Self

import psutil

from jobs.environment import QUICK_JVM, ROOT, thread_mode_env
from jobs.flink_rest import FlinkRest
from jobs.running_job import RunningJob
from tests.support.connections import connections_to

_STOP_S = 60.0


class JobProcess:
    """Runs this file as a script; a context manager that ends it, and the JVM it started.

    Args:
        overrides: Of the settings, plain JSON types.
        log: Where its output goes.
        switch: The folder of the ``Switch`` that its scoring obeys.
        target: host:port of a cluster; none runs a mini-cluster in the process.
        conf: The settings' file below conf/.
    """

    def __init__(
        self,
        overrides: dict[str, Any],
        log: Path,
        switch: Path,
        target: str | None = None,
        conf: str = "fraud.yaml",
    ) -> None:
        places = {"switch": str(switch), "target": target, "conf": conf}
        chosen = {"overrides": overrides, **places}
        self._argument = json.dumps(chosen)
        self._log = log

    def __enter__(self) -> Self:
        with self._log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, __file__, self._argument],
                cwd=ROOT,
                env={"JVM_ARGS": QUICK_JVM}
                | os.environ
                | thread_mode_env()
                | {"FLINK_LOG_DIR": str(self._log.parent)},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        try:
            self.job = self._submitted()
            self.job.wait_running()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def _submitted(self) -> RunningJob:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("job "):
                _, job_id, address = line.split()
                return RunningJob(job_id, FlinkRest(address))
        raise AssertionError(f"no job was submitted: {self._log.read_text()[-2_000:]}")

    def stop(self) -> None:
        """Cancel the job and wait until the process has ended."""
        self.process.communicate("stop\n", timeout=_STOP_S)
        assert self.process.returncode == 0, self._log.read_text()[-2_000:]

    def connections(self, port: int) -> int:
        """How many connections to a port its processes have open."""
        return connections_to(port, psutil.Process(self.process.pid).children(recursive=True))

    def _end(self) -> None:
        if self.process.poll() is None:
            family = psutil.Process(self.process.pid).children(recursive=True)
            for process in (self.process, *family):
                _kill(process)
            psutil.wait_procs(family, _STOP_S)
        self.process.wait(_STOP_S)
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None and not pipe.closed:
                pipe.close()


def _kill(process: psutil.Process | subprocess.Popen[str]) -> None:
    try:
        process.kill()
    except psutil.NoSuchProcess:
        return


def main() -> None:
    from jobs import pipeline, runner
    from jobs.settings import load
    from tests.support.held import HeldScoring, Switch

    chosen = json.loads(sys.argv[1])
    held = partial(HeldScoring, Switch(Path(chosen["switch"])))
    setattr(pipeline, "ServedScoring", held)  # noqa: B010
    settings = load(ROOT / "conf" / chosen["conf"], chosen["overrides"])
    job = runner.start(settings, chosen["target"])
    print(f"job {job.job_id} {job.rest.address}", flush=True)
    sys.stdin.readline()
    job.cancel()


if __name__ == "__main__":
    main()
