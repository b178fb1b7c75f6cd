"""`streamscore run`: submits a job and shows how it fares until Ctrl-C or its end."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.markup import escape

from jobs import preflight, runner
from jobs.console import console, errors, spinner
from jobs.environment import NotReadyError
from jobs.exit_codes import ExitCode
from jobs.flink_rest import JobError, Patience
from jobs.running_job import TERMINAL_STATES, RunningJob
from jobs.settings import Settings
from jobs.starting import EMPTY, Start

SHOW_EVERY_S = 5.0
START_TIMEOUT_S = 300.0
TRIES_AFTER_S = 30.0
"""How long a cluster may not answer before it is given up; see ``Patience``."""

_COUNTERS = ("events", "duplicates", "dead_letters")
_OVERLOAD_COUNTERS = ("shed", "shedding")
_LAG = "pendingRecords"
_NAMES = {_LAG: "behind"}


@dataclass(frozen=True, slots=True)
class Progress:
    """A running job at one moment.

    Attributes:
        state: Flink's word.
        counts: Records so far since the last restart, by counter.
        checkpoints: Completed ones.
        restarts: After failures.
    """

    state: str
    counts: dict[str, int]
    checkpoints: int
    restarts: int

    def line(self) -> str:
        """One line of text."""
        counted = [f"{name.replace('_', ' ')} {n:,}" for name, n in self.counts.items()]
        rest = [f"checkpoints {self.checkpoints:,}", f"restarts {self.restarts:,}"]
        return " | ".join([self.state, *counted, *rest])


def run(
    settings: Settings,
    conf: Path,
    target: str | None = None,
    begin: Start = EMPTY,
    *,
    shows_lag: bool = False,
) -> int:
    """Run a job; on a mini-cluster in this process it ends with it.

    Args:
        settings: The job's settings.
        conf: Their file, named in what to do.
        target: host:port of a cluster's JobManager; none takes a mini-cluster.
        begin: From which state and positions.
        shows_lag: Also show how many records of its topics it has not read yet.

    Returns:
        The exit code: 0 after a job's own end or Ctrl-C, 1 if it failed.

    Raises:
        NotReadyError: no model, no Kafka, no topics, no cluster.
        SettingsError: the model does not fit the settings.
    """
    _check(settings, conf, target)
    job: RunningJob | None = None
    try:
        with spinner("starting Flink") as tell:
            job = runner.start(settings, target, begin)
            tell(f"waiting for the tasks to run, {job.rest.url}")
            job.wait_running(START_TIMEOUT_S)
        console.print(f"job {job.job_id} runs; web page {job.rest.url}", soft_wrap=True)
        overload = _OVERLOAD_COUNTERS if settings.overload else ()
        return _follow(job, (*_COUNTERS, *overload, *([_LAG] if shows_lag else [])))
    except JobError as exc:
        errors.print(f"[red]failed:[/] {escape(str(exc))}", soft_wrap=True)
        return ExitCode.FAILED
    except KeyboardInterrupt:
        return _leave(job, target)


def _check(settings: Settings, conf: Path, target: str | None) -> None:
    try:
        warnings = preflight.check(settings, conf)
    except NotReadyError as exc:
        if target is None or exc.problem.startswith("no model"):
            raise
        # A cluster may reach what this machine does not.
        warnings = [f"seen from here: {exc.problem}; {exc.fix}"]
    for warning in warnings:
        errors.print(f"[yellow]warning:[/] {escape(warning)}", soft_wrap=True)


def _follow(job: RunningJob, counters: Sequence[str]) -> int:
    """Show the job's progress until its end."""
    patience = Patience(TRIES_AFTER_S)
    while True:
        state = ""
        try:
            state = job.state()
            if state not in TERMINAL_STATES:
                line = progress_of(job, state, counters).line()
                console.print(line, soft_wrap=True, highlight=False)
            patience.answered()
        except JobError as exc:
            patience.missed(exc)
        if state in TERMINAL_STATES:
            return _ended(job, state)
        time.sleep(SHOW_EVERY_S)


def _ended(job: RunningJob, state: str) -> int:
    if state == "FAILED":
        raise JobError(job.cause())
    console.print(f"the job ended as {state}")
    return ExitCode.OK if state in ("FINISHED", "CANCELED") else ExitCode.FAILED


def progress_of(job: RunningJob, state: str, counters: Sequence[str] = _COUNTERS) -> Progress:
    """Ask Flink how far a job is.

    Raises:
        JobError: the cluster does not answer.
    """
    return Progress(
        state=state,
        counts={_NAMES.get(n, n): count for n, count in job.counts(counters).items()},
        checkpoints=job.checkpoints_completed(),
        restarts=job.restarts(),
    )


def _leave(job: RunningJob | None, target: str | None) -> int:
    if job is None:
        return ExitCode.OK
    if target is not None:
        console.print(
            f"\nthe job runs on; cancel it on {job.rest.url}, or with:\n"
            f"  curl -X PATCH '{job.rest.url}/jobs/{job.job_id}?mode=cancel'",
            soft_wrap=True,
        )
        return ExitCode.OK
    with spinner("cancelling the job"):
        job.cancel()
    console.print("the job is cancelled")
    return ExitCode.OK
