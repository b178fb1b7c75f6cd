"""OpenTelemetry: a span for each call, below the span of whoever made it; an extra."""

from __future__ import annotations

import threading
from typing import Any

from model_server.call_record import CallRecord
from model_server.errors import StartupError

__all__ = ["Tracing", "start_tracing"]

_CLOSE_S = 3.0
_SERVICE = "streamscore-server"
_CARRIED = ("traceparent", "tracestate")  # W3C Trace Context


class Tracing:
    """Makes spans of calls; an ``Observer``. For one event loop."""

    def __init__(self, provider: Any) -> None:
        """Make spans by a TracerProvider, which ``close`` shuts down."""
        from opentelemetry.trace import SpanKind, StatusCode
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = provider
        self._tracer = provider.get_tracer("streamscore.model_server")
        self._context = TraceContextTextMapPropagator()
        self._kind = SpanKind.SERVER
        self._error = StatusCode.ERROR
        self._spans: dict[int, Any] = {}

    def begun(self, record: CallRecord) -> None:
        """See ``Observer``."""
        headers = ((key.lower(), value) for key, value in record.metadata)
        carrier = {key: value for key, value in headers if key in _CARRIED}
        self._spans[id(record)] = self._tracer.start_span(
            record.call,
            context=self._context.extract(carrier),
            kind=self._kind,
        )

    def ended(self, record: CallRecord, took_s: float) -> None:
        """See ``Observer``."""
        span = self._spans.pop(id(record))
        span.set_attribute("streamscore.entrypoint", record.entrypoint)
        span.set_attribute("streamscore.status", record.status)
        span.set_attribute("streamscore.request_id", record.request_id)
        if record.model:
            span.set_attribute("streamscore.model", record.model)
            span.set_attribute("streamscore.version", record.version)
        if record.status != "OK":
            span.set_status(self._error, record.status)
        span.end()

    def close(self) -> None:
        """Send what is not sent yet, for at most a few seconds."""
        # A collector that is gone would hold up the server's end for a minute.
        closing = threading.Thread(target=self._provider.shutdown, daemon=True)
        closing.start()
        closing.join(_CLOSE_S)


def start_tracing(endpoint: str) -> Tracing:
    """Send spans to a collector from now on, in a thread of their own.

    Args:
        endpoint: Its OTLP address over gRPC, as ``http://collector:4317``; ``https`` for TLS.

    Raises:
        StartupError: OpenTelemetry is not installed.
    """
    try:
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as exc:
        raise StartupError(
            "tracing needs OpenTelemetry: make setup EXTRA=tracing, or "
            "pip install 'streamscore[tracing]'"
        ) from exc
    provider = TracerProvider(
        resource=Resource.create({SERVICE_NAME: _SERVICE}), shutdown_on_exit=False
    )
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
    return Tracing(provider)
