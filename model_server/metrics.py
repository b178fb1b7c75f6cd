"""The server's metrics for Prometheus.

Where TensorFlow Serving and MLServer have a metric it is there under their names, so that their
dashboards go on; the others begin with ``streamscore_server_``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    Summary,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from model_server.call_record import CallRecord
from model_server.servables import Servables, ServableState

__all__ = ["CONTENT_TYPE", "PATHS", "ServerMetrics"]

#: MLServer's and Triton's path, and TensorFlow Serving's.
PATHS = ("/metrics", "/monitoring/prometheus/metrics")
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

# TensorFlow Serving's own: 10 us times powers of 1.8, up to 20 minutes.
_LATENCY_US = tuple(float(f"{10.0 * 1.8**power:.6g}") for power in range(33))
_REFUSED = "REFUSED"
_BATCH_ROWS = tuple(float(2**power) for power in range(15))
_INFERENCE = frozenset(
    {"Predict", "Classify", "Regress", "MultiInference", "ModelInfer"}
    | {"predict", "classify", "regress", "infer"}
)


class _PlainName(Collector):
    """A counter under its own name: the client library would add ``_total``."""

    def __init__(self, counter: Counter) -> None:
        self._counter = counter

    def collect(self) -> Iterator[Metric]:
        for family in self._counter.collect():
            plain = Metric(family.name, family.documentation, "unknown")
            for sample in family.samples:
                plain.add_sample(family.name, sample.labels, sample.value)
            yield plain


class _Versions(Collector):
    """Every version of every model with the state it is in."""

    def __init__(self, servables: Servables) -> None:
        self._servables = servables

    def collect(self) -> Iterator[Metric]:
        family = GaugeMetricFamily(
            "streamscore_server_model_version",
            "1 for the state that a version of a model is in",
            labels=["model", "version", "state"],
        )
        for name, version, status in self._servables.all_statuses():
            refused = status.state is ServableState.END and bool(status.error)
            now = _REFUSED if refused else status.state.value
            for state in (*(state.value for state in ServableState), _REFUSED):
                family.add_metric([name, str(version), state], float(state == now))
        yield family


class _Inferences:
    """Calls of models, under TensorFlow Serving's and MLServer's names."""

    def __init__(self, registry: CollectorRegistry) -> None:
        requests = self._requests = Counter(
            ":tensorflow:serving:request_count",
            "Inference calls (TensorFlow Serving's name)",
            ["model_name", "status"],
            registry=None,
        )
        registry.register(_PlainName(requests))
        self._latency_us = Histogram(
            ":tensorflow:serving:request_latency",
            "Time of inference calls in microseconds (TensorFlow Serving's name)",
            ["model_name", "API", "entrypoint"],
            buckets=_LATENCY_US,
            registry=registry,
        )
        labels = ["model", "version"]
        self._successes = Counter(
            "model_infer_request_success",
            "Inference calls that succeeded (MLServer's name)",
            labels,
            registry=registry,
        )
        self._failures = Counter(
            "model_infer_request_failure",
            "Inference calls that failed (MLServer's name)",
            labels,
            registry=registry,
        )
        self._duration = Summary(
            "model_infer_request_duration",
            "Time of inference calls in seconds (MLServer's name)",
            labels,
            registry=registry,
        )

    def series_of(self, record: CallRecord) -> tuple[Sequence[Counter], Histogram, Summary]:
        """What counts such a call, and what takes its time in microseconds and in seconds."""
        version = str(record.version)
        outcome = self._successes if record.status == "OK" else self._failures
        return (
            (
                self._requests.labels(record.model, record.status),
                outcome.labels(record.model, version),
            ),
            self._latency_us.labels(record.model, record.call, record.entrypoint),
            self._duration.labels(record.model, version),
        )


class ServerMetrics:
    """Counts what it is told; ``exposed`` is what Prometheus reads. For one event loop.

    Labels hold models that are served, never names that callers made up.

    Attributes:
        registry: Where the metrics are.
    """

    def __init__(self, servables: Servables) -> None:
        """Start from zero.

        Args:
            servables: Whose versions are shown.
        """
        # Else a second series for each one, which nobody asked for.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        registry = self.registry = CollectorRegistry()
        self._calls = Counter(
            "streamscore_server_calls",
            "Calls of any kind by their gRPC status",
            ["entrypoint", "call", "status"],
            registry=registry,
        )
        self._at_work = 0
        Gauge(
            "streamscore_server_calls_in_flight", "Calls at work", registry=registry
        ).set_function(lambda: self._at_work)
        self._inferences = _Inferences(registry)
        self._batch_rows = Histogram(
            "streamscore_server_batch_rows",
            "Rows of one run of a model, of one call or several",
            ["model"],
            buckets=_BATCH_ROWS,
            registry=registry,
        )
        self._waiting = Gauge(
            "streamscore_server_calls_waiting",
            "Runs in the pool of threads or waiting for it",
            registry=registry,
        )
        self._loads = Counter(
            "streamscore_server_loads",
            "Versions loaded, or refused as broken",
            ["model", "outcome"],
            registry=registry,
        )
        self._load_seconds = Summary(
            "streamscore_server_load_seconds",
            "Time to load and warm up a version",
            ["model"],
            registry=registry,
        )
        self._rows_of: dict[str, Histogram] = {}
        self._series: dict[
            tuple[str, str, str, str, int],
            tuple[Sequence[Counter], Histogram | None, Summary | None],
        ] = {}
        registry.register(_Versions(servables))
        ProcessCollector(registry=registry)

    def begun(self, record: CallRecord) -> None:
        """See ``Observer``."""
        self._at_work += 1

    def ended(self, record: CallRecord, took_s: float) -> None:
        """See ``Observer``."""
        self._at_work -= 1
        kind = record.entrypoint, record.call, record.status, record.model, record.version
        series = self._series.get(kind)
        if series is None:  # to look up a series by its labels takes longer than to count
            series = self._series[kind] = self._series_of(record)
        counters, latency_us, duration = series
        for counter in counters:
            counter.inc()
        if latency_us is not None and duration is not None:
            latency_us.observe(took_s * 1e6)
            duration.observe(took_s)

    def _series_of(
        self, record: CallRecord
    ) -> tuple[Sequence[Counter], Histogram | None, Summary | None]:
        calls = self._calls.labels(record.entrypoint, record.call, record.status)
        if not record.model or record.call not in _INFERENCE:
            return (calls,), None, None
        counters, latency_us, duration = self._inferences.series_of(record)
        return (calls, *counters), latency_us, duration

    def ran(self, model: str, rows: int) -> None:
        """A model was run once."""
        rows_of = self._rows_of.get(model)
        if rows_of is None:
            rows_of = self._rows_of[model] = self._batch_rows.labels(model)
        rows_of.observe(rows)

    def watch_queue(self, queued: Callable[[], int]) -> None:
        """Ask ``queued``, whenever it is read, how many runs are in the pool or wait for it."""
        self._waiting.set_function(queued)

    def loaded(self, model: str, took_s: float) -> None:
        """A version was loaded."""
        self._loads.labels(model, "loaded").inc()
        self._load_seconds.labels(model).observe(took_s)

    def refused(self, model: str) -> None:
        """A version was refused."""
        self._loads.labels(model, "refused").inc()

    def exposed(self) -> bytes:
        """Return all of it in Prometheus's text format."""
        return generate_latest(self.registry)
