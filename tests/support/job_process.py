"""A job in a process of its own, so that it can be hurt without hurting the tests.

As a script: takes a JSON of the settings' overrides and where to run, prints ``job ID ADDRESS``
when the job is submitted, and waits for a line on stdin to cancel it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

from jobs.environment import ROOT, thread_mode_env
from jobs.runner import FlinkRest, RunningJob

_STOP_S = 60.0
_WORKER = "pyflink.fn_execution.beam.beam_boot"


class JobProcess:
    """Runs this file as a script; a context manager that ends it, and the JVM it started.

    Args:
        overrides: Of conf/fraud.yaml, plain JSON types.
        log: Where its output goes.
        target: host:port of a cluster; none runs a mini-cluster in the process.
    """

    def __init__(self, overrides: dict[str, Any], log: Path, target: str | None = None) -> None:
        self._argument = json.dumps({"overrides": overrides, "target": target})
        self._log = log

    def __enter__(self) -> Self:
        # Workers of process mode run in processes, as on a cluster, not in a thread of ours.
        variables = os.environ | thread_mode_env() | {"_python_worker_execution_mode": "process"}
        with self._log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, __file__, self._argument],
                cwd=ROOT,
                env=variables | {"FLINK_LOG_DIR": str(self._log.parent)},
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

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
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

    def worker(self) -> psutil.Process:
        """The Python process that scores, started by the mini-cluster."""
        return worker_below(psutil.Process(self.process.pid))

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


def worker_below(ancestor: psutil.Process) -> psutil.Process:
    """The one Python worker of process mode among a process' descendants."""
    (worker,) = (p for p in ancestor.children(recursive=True) if _is_worker(p))
    return worker


def _is_worker(process: psutil.Process) -> bool:
    try:
        command = process.cmdline()
    except psutil.NoSuchProcess:
        return False
    return command[1:3] == ["-m", _WORKER]


def _kill(process: psutil.Process | subprocess.Popen[str]) -> None:
    try:
        process.kill()
    except psutil.NoSuchProcess:
        return


def main() -> None:
    from jobs import runner
    from jobs.settings import load

    chosen = json.loads(sys.argv[1])
    settings = load(ROOT / "conf" / "fraud.yaml", chosen["overrides"])
    job = runner.start(settings, chosen["target"])
    print(f"job {job.job_id} {job.rest.address}", flush=True)
    sys.stdin.readline()
    job.cancel()


if __name__ == "__main__":
    main()
