"""What outlets tell Prometheus."""

from __future__ import annotations

import time
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge

Fate = Literal["done", "refused", "retried", "given_up"]


class Metrics:
    """The metrics of a process; each target has its own label.

    Args:
        registry: Where they are registered, once.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self.messages = Counter(
            "streamscore_outlet_messages",
            "Messages by what became of them; one that is tried again counts each time.",
            ("target", "fate"),
            registry=registry,
        )
        self.waiting = Gauge(
            "streamscore_outlet_waiting",
            "Messages under way that the target has not taken.",
            ("target",),
            registry=registry,
        )
        self.taken_at = Gauge(
            "streamscore_outlet_last_taken_timestamp_seconds",
            "When the target last took one, or there was none for it; Unix time.",
            ("target",),
            registry=registry,
        )


class OutletMetrics:
    """Those of one target.

    Args:
        metrics: The process'.
        target: Its name.
    """

    def __init__(self, metrics: Metrics, target: str) -> None:
        self._metrics = metrics
        self._target = target
        self.idle()
        for fate in ("done", "refused", "retried", "given_up"):
            metrics.messages.labels(target, fate)

    def attempt(self, done: int, refused: int, retried: int) -> None:
        """A batch was tried."""
        self._count("done", done)
        self._count("refused", refused)
        self._count("retried", retried)
        self._metrics.waiting.labels(self._target).set(retried)
        if done:
            self._taken()

    def given_up(self, count: int) -> None:
        """Messages became dead letters as nobody took them in time."""
        self._count("given_up", count)
        self._metrics.waiting.labels(self._target).set(0)

    def idle(self) -> None:
        """Nothing waits."""
        self._metrics.waiting.labels(self._target).set(0)
        self._taken()

    def _taken(self) -> None:
        self._metrics.taken_at.labels(self._target).set(time.time())

    def _count(self, fate: Fate, count: int) -> None:
        self._metrics.messages.labels(self._target, fate).inc(count)
