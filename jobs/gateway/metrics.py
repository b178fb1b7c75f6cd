"""The gateway's metrics for Prometheus."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

__all__ = ["GatewayMetrics"]

_SECONDS = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.0)


class GatewayMetrics:
    """Counts what it is told; for one event loop.

    Args:
        in_flight: Gives the requests at work.
        late: Gives the replies that came too late.
        limit: Gives how many requests may wait for the job.
    """

    def __init__(
        self,
        in_flight: Callable[[], float],
        late: Callable[[], float],
        limit: Callable[[], float],
    ) -> None:
        registry = self._registry = CollectorRegistry()
        prefix = "streamscore_gateway_"
        self.answers = Counter(
            f"{prefix}answers", "Answers to /rank by who made them", ["by"], registry=registry
        )
        self.refused = Counter(
            f"{prefix}refused", "Requests that were refused", ["reason"], registry=registry
        )
        self.events = Counter(
            f"{prefix}events", "Events written for /events", ["kind"], registry=registry
        )
        self.seconds = Histogram(
            f"{prefix}seconds", "Time to an answer to /rank", buckets=_SECONDS, registry=registry
        )
        gauge = Gauge(f"{prefix}in_flight", "Requests to /rank at work", registry=registry)
        gauge.set_function(in_flight)
        gauge = Gauge(f"{prefix}late_replies", "Replies nobody waited for", registry=registry)
        gauge.set_function(late)
        gauge = Gauge(f"{prefix}limit", "Requests that may wait for the job", registry=registry)
        gauge.set_function(limit)
        for by in ("model", "job_fallback", "timeout", "unavailable", "overloaded"):
            self.answers.labels(by)
        for reason in ("too_many", "draining", "malformed"):
            self.refused.labels(reason)

    def exposed(self) -> bytes:
        """The text format."""
        return generate_latest(self._registry)
