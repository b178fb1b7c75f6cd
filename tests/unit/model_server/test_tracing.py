"""Calls become spans below their caller's, and reach a collector."""

from __future__ import annotations

import builtins
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import grpc
import numpy as np
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

from model_server.errors import StartupError
from model_server.protos import PredictionServiceStub
from model_server.tracing import start_tracing

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PARENT = f"00-{TRACE}-{SPAN}-01"
ROWS = np.zeros((2, 5), np.float32)


class Collector(trace_service_pb2_grpc.TraceServiceServicer):  # type: ignore[misc]
    """Keeps the spans that it gets."""

    def __init__(self) -> None:
        self.spans: list[Any] = []

    async def Export(self, request: Any, context: Any) -> Any:
        for resource in request.resource_spans:
            for scope in resource.scope_spans:
                self.spans.extend(scope.spans)
        return trace_service_pb2.ExportTraceServiceResponse()


@asynccontextmanager
async def collecting() -> AsyncIterator[tuple[Collector, str]]:
    server, collector = grpc.aio.server(), Collector()
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield collector, f"http://127.0.0.1:{port}"
    finally:
        await server.stop(None)


def attributes(span: Any) -> dict[str, Any]:
    return {
        entry.key.removeprefix("streamscore."): getattr(
            entry.value, entry.value.WhichOneof("value")
        )
        for entry in span.attributes
    }


async def test_spans_have_their_callers_as_parents(serving: Any, predict_request: Any) -> None:
    async with (  # ends before the collector does
        collecting() as (collector, endpoint),
        serving(tracing_endpoint=endpoint) as running,
        grpc.aio.insecure_channel(f"127.0.0.1:{running.port}") as channel,
        aiohttp.ClientSession(f"http://127.0.0.1:{running.ports.http}") as web,
    ):
        stub = PredictionServiceStub(channel)
        await stub.Predict(predict_request(ROWS), metadata=[("traceparent", PARENT)])
        with pytest.raises(grpc.aio.AioRpcError):
            await stub.Predict(predict_request(ROWS[:, :4]))
        document = {"instances": ROWS.tolist()}
        headers = {"Traceparent": PARENT, "X-Request-Id": "seven"}
        await web.post("/v1/models/fraud:predict", json=document, headers=headers)
        # The server is stopped: it has sent everything.
    by_name = {(span.name, attributes(span)["status"]): span for span in collector.spans}
    good, bad = by_name["Predict", "OK"], by_name["Predict", "INVALID_ARGUMENT"]
    rest = by_name["predict", "OK"]
    for span in (good, rest):
        assert (span.trace_id.hex(), span.parent_span_id.hex()) == (TRACE, SPAN)
        assert span.status.code == 0
    assert not bad.parent_span_id and bad.trace_id.hex() != TRACE
    assert (bad.status.code, bad.status.message) == (2, "INVALID_ARGUMENT")
    assert attributes(rest) == {
        "entrypoint": "REST",
        "status": "OK",
        "request_id": "seven",
        "model": "fraud",
        "version": 10,
    }
    assert all(span.end_time_unix_nano > span.start_time_unix_nano for span in by_name.values())


async def test_a_collector_that_is_gone_harms_nobody(
    serving: Any, predict_request: Any, dead_port: int
) -> None:
    endpoint = f"http://127.0.0.1:{dead_port}"
    async with (
        serving(tracing_endpoint=endpoint) as running,
        grpc.aio.insecure_channel(f"127.0.0.1:{running.port}") as channel,
    ):
        await PredictionServiceStub(channel).Predict(predict_request(ROWS))


def test_without_the_extra_the_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def missing(name: str, *given: Any) -> Any:
        if name.startswith("opentelemetry.exporter"):
            raise ImportError(name)
        return real(name, *given)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(StartupError, match="make setup EXTRA=tracing"):
        start_tracing("http://127.0.0.1:1")
