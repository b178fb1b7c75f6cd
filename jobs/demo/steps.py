"""What every demo does around its own: one at a time, steps with a line each, broker, job."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from jobs import kafka_broker, runner
from jobs.console import console, spinner
from jobs.environment import QUICK_JVM, NotReadyError
from jobs.flink_rest import JobError
from jobs.running_job import RunningJob
from jobs.settings import Settings

__all__ = ["Tell", "alone", "broker", "job", "job_text", "parts", "step"]

START_TIMEOUT_S = 300.0
"""For a job's tasks to run; 20 to 40 s on an idle machine of 2 cores."""


@contextmanager
def alone(folder: Path) -> Iterator[ExitStack]:
    """One demo per folder; SIGTERM and SIGHUP end it in order, as Ctrl-C does.

    Yields the stack of what it starts, which is stopped at the end, whoever is impatient.
    """
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    handlers = {number: signal.getsignal(number) for number in numbers}
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            raise NotReadyError("another demo runs", "wait for its end, or stop it") from exc
        try:
            for number in numbers:
                signal.signal(number, signal.default_int_handler)
            with ExitStack() as started:
                try:
                    yield started
                finally:
                    for number in numbers:
                        signal.signal(number, signal.SIG_IGN)
                    console.print("stopping what was started")
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)


T = TypeVar("T")
Tell = Callable[[str], None]


def step(name: str, work: Callable[[Tell], T], describe: Callable[[T], str]) -> T:
    """Do one step under a spinner, then print a line: its name, what came of it, its seconds."""
    begun_s = time.monotonic()
    with spinner(name) as tell:
        result = work(tell)
    took_s = time.monotonic() - begun_s
    console.print(f"{name:<13} {describe(result)}  [dim]{took_s:.1f} s[/]", soft_wrap=True)
    return result


def parts(tell: Tell) -> Callable[[str, float], None]:
    """Progress by step and part as text."""
    return lambda step, done: tell(f"{step[0].lower()}{step[1:]}, {done:.0%}")


def broker(folder: Path, started: ExitStack) -> str:
    """Start a broker with an empty folder, which goes with it; returns host:port."""
    kafka_broker.KafkaBroker(folder).kill()  # of a demo that was killed
    shutil.rmtree(folder, ignore_errors=True)
    started.callback(shutil.rmtree, folder, ignore_errors=True)
    return started.enter_context(kafka_broker.KafkaBroker(folder)).bootstrap


def job(chosen: Settings, started: ExitStack, tell: Tell) -> RunningJob:
    """Run a job on a mini-cluster until ``started`` is closed; returns when its tasks run."""
    tell("Flink job, starting a mini-cluster")
    os.environ.setdefault("JVM_ARGS", QUICK_JVM)
    running = runner.start(chosen)
    started.callback(_cancel, running)
    tell(f"Flink job, waiting for its tasks to run, {running.rest.url}")
    running.wait_running(START_TIMEOUT_S)
    return running


def _cancel(running: RunningJob) -> None:
    with suppress(JobError):  # then it has ended with its cluster
        running.cancel()


def job_text(running: RunningJob) -> str:
    """Which job runs where."""
    return f"{running.job_id} runs; web page {running.rest.url}"
