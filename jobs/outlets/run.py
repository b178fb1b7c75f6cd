"""Runs the workers of a command: a thread for each target, until SIGTERM, Ctrl-C or a failure."""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Event, Thread
from typing import Any

from prometheus_client import CollectorRegistry, start_http_server

from jobs import kafka_topics
from jobs.outlets.dead_letters import KafkaDeadLetters
from jobs.outlets.metrics import Metrics, OutletMetrics
from jobs.outlets.target import Target
from jobs.outlets.worker import Worker, WorkerOptions
from jobs.settings import Settings

logger = logging.getLogger(__name__)

_TICK_S = 0.2


@dataclass(frozen=True, slots=True)
class Outlet:
    """A target and how its topic is read.

    Attributes:
        target: Who gets the messages.
        options: The worker's.
        dead_letters: The topic of what it does not take.
    """

    target: Target
    options: WorkerOptions
    dead_letters: str


def run(settings: Settings, outlets: Sequence[Outlet], metrics_port: int | None = None) -> None:
    """Run until a signal; what is under way ends first.

    Args:
        settings: The job's.
        outlets: What runs, each by itself: one that is down holds up no other.
        metrics_port: Port of Prometheus' page, 0 for a free one; none for no page.

    Raises:
        StackError: No broker answers, or a topic cannot be made.
        Exception: What ended a worker; the others have ended as well.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    _make_topics(settings, outlets)
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    if metrics_port is not None:
        server, _ = start_http_server(metrics_port, "127.0.0.1", registry)
        logger.info("metrics port=%d", server.server_port)
    stopping = Event()
    threads = [
        _Thread(_worker(settings, outlet, metrics, stopping), stopping) for outlet in outlets
    ]
    with _signals(stopping):
        for thread in threads:
            thread.start()
        while not stopping.wait(_TICK_S):
            pass
        logger.info("stopping")
        for thread in threads:
            thread.join()
    for thread in threads:
        if thread.failure is not None:
            raise thread.failure


def _make_topics(settings: Settings, outlets: Sequence[Outlet]) -> None:
    """The dead letters' topics, and those that are read: a job that has not run yet has none."""
    kafka, partitions = settings.kafka, settings.topics.partitions
    login = kafka.python_properties()
    there = kafka_topics.topic_partitions(kafka.bootstrap_servers, login=login)
    wanted = {o.dead_letters for o in outlets} | {o.options.topic for o in outlets}
    missing = {name: partitions for name in sorted(wanted) if name not in there}
    kafka_topics.create_topics(kafka.bootstrap_servers, missing, login=login)


def _worker(settings: Settings, outlet: Outlet, metrics: Metrics, stopping: Event) -> Worker:
    kafka, name = settings.kafka, outlet.target.name
    dead_letters = KafkaDeadLetters(
        kafka.bootstrap_servers,
        kafka.python_properties(),
        outlet.dead_letters,
        outlet.options.topic,
        name,
    )
    told = OutletMetrics(metrics, name)
    return Worker(outlet.options, outlet.target, dead_letters, told, stopping)


class _Thread(Thread):
    """A worker's; its failure ends all."""

    def __init__(self, worker: Worker, stopping: Event) -> None:
        super().__init__(daemon=True)
        self._worker = worker
        self._stopping = stopping
        self.failure: Exception | None = None

    def run(self) -> None:
        try:
            self._worker.run()
        except Exception as exc:
            self.failure = exc
        finally:
            self._stopping.set()


@contextmanager
def _signals(stopping: Event) -> Iterator[None]:
    """SIGTERM and Ctrl-C set the event."""

    def stop(*_: Any) -> None:
        stopping.set()

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
