"""What the demos share: one at a time, steps that are told, a broker, topics, a job on it."""

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

from jobs import kafka_topics, runner, stack
from jobs.console import console, spinner
from jobs.demo.run import Stage
from jobs.demo.watch import output_kinds
from jobs.environment import QUICK_JVM, NotReadyError
from jobs.runner import JobError, RunningJob
from jobs.settings import Settings

START_TIMEOUT_S = 300.0
"""For a job's tasks to run; 20 to 40 s on an idle machine of 2 cores."""

T = TypeVar("T")
Tell = Callable[[str], None]


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """One demo per folder; SIGTERM and SIGHUP end it in order, as Ctrl-C does."""
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
            yield
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)


def ignore_interrupts() -> None:
    """From now on: an impatient second Ctrl-C would leave processes behind."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


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


def start_broker(folder: Path, started: ExitStack) -> str:
    """A fresh broker below a demo's folder; ``started`` will stop it. Returns host:port."""

    def work(_: Tell) -> str:
        place = folder / "stack"
        stack.KafkaBroker(place).kill()  # of a demo that was killed
        shutil.rmtree(place, ignore_errors=True)
        started.callback(shutil.rmtree, place, ignore_errors=True)
        return started.enter_context(stack.KafkaBroker(place)).bootstrap

    return step("Kafka", work, lambda at: f"fresh, at {at}")


def start_job(chosen: Settings, started: ExitStack) -> RunningJob:
    """Make the topics and start the job on a mini-cluster; ``started`` will cancel it."""
    step("topics", lambda _: _topics(chosen), lambda names: ", ".join(names))
    return step("Flink job", lambda tell: _job(chosen, started, tell), _job_text)


def _topics(chosen: Settings) -> list[str]:
    names = kafka_topics.partitions_of(chosen.topics)
    bootstrap = chosen.kafka.bootstrap_servers
    outputs = {name: names[name] for name in output_kinds(chosen.topics)}
    # A prediction's time is that of its arrival in Kafka, by the broker's clock.
    kafka_topics.create_topics(bootstrap, outputs, {"message.timestamp.type": "LogAppendTime"})
    kafka_topics.create_topics(bootstrap, names)
    return list(names)


def _job(chosen: Settings, started: ExitStack, tell: Tell) -> RunningJob:
    tell("Flink job, starting a mini-cluster")
    os.environ.setdefault("JVM_ARGS", QUICK_JVM)
    job = runner.start(chosen)
    started.callback(_cancel, job)
    tell(f"Flink job, waiting for its tasks to run, {job.rest.url}")
    job.wait_running(START_TIMEOUT_S)
    return job


def _cancel(job: RunningJob) -> None:
    with suppress(JobError):  # then it has ended with its cluster
        job.cancel()


def _job_text(job: RunningJob) -> str:
    return f"{job.job_id} runs; web page {job.rest.url}"


def linger(stage: Stage) -> None:
    """Leave everything running until Ctrl-C."""
    at = stage.settings.kafka.bootstrap_servers
    console.print(f"\nKafka at {at} and Flink at {stage.job.rest.url} run on; end with Ctrl-C")
    with suppress(KeyboardInterrupt):
        while True:
            time.sleep(1.0)
