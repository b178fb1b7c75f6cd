"""What Prometheus reads is what was called."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import aiohttp
import grpc
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from model_server.metrics import PATHS
from model_server.protos import PredictionServiceStub

Series = dict[tuple[str, frozenset[tuple[str, str]]], float]
GOOD = {"instances": [[1, 2, 3, 4, 5]]}


async def scrape(port: int, path: str = "/metrics") -> Series:
    async with (
        aiohttp.ClientSession() as web,
        web.get(f"http://127.0.0.1:{port}{path}") as response,
    ):
        assert response.status == 200
        assert response.content_type == "text/plain"
        return parsed(await response.text())


def parsed(text: str) -> Series:
    # Prometheus allows colons in names everywhere, this parser not at their beginning.
    text = re.sub(r"(^|(?<=# HELP )|(?<=# TYPE )):", "tf:", text, flags=re.MULTILINE)
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(series: Series, name: str, **labels: str) -> float:
    return series[name, frozenset(labels.items())]


async def call_all(running: Any, predict_request: Any) -> None:
    """Two good calls and one bad one over gRPC, one good one and one bad one over HTTP."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{running.port}") as channel:
        stub = PredictionServiceStub(channel)
        for _ in range(2):
            await stub.Predict(predict_request(np.zeros((3, 5), np.float32)))
        with pytest.raises(grpc.aio.AioRpcError):
            await stub.Predict(predict_request(np.zeros((3, 4), np.float32)))
        unknown = predict_request(np.zeros((3, 5), np.float32))
        unknown.model_spec.name = "made-up"
        with pytest.raises(grpc.aio.AioRpcError):
            await stub.Predict(unknown)
    async with aiohttp.ClientSession(f"http://127.0.0.1:{running.ports.http}") as web:
        for document in (GOOD, {"instances": "x"}):
            await (await web.post("/v1/models/fraud:predict", json=document)).read()
        await (await web.get("/v1/models/fraud:nonsense-made-up-by-a-caller")).read()


@pytest.mark.parametrize("path", PATHS)
async def test_calls_are_counted_under_every_name(
    serving: Any, predict_request: Any, path: str
) -> None:
    async with serving() as running:
        await call_all(running, predict_request)
        series = await scrape(running.ports.http, path)
    for status, count in (("OK", 3), ("INVALID_ARGUMENT", 2)):
        found = value(
            series, "tf:tensorflow:serving:request_count", model_name="fraud", status=status
        )
        assert found == count
    latency = "tf:tensorflow:serving:request_latency"
    labels = {"model_name": "fraud", "API": "Predict", "entrypoint": "GRPC"}
    assert value(series, f"{latency}_count", **labels) == 3
    assert value(series, f"{latency}_bucket", **labels, le="+Inf") == 3
    assert value(series, f"{latency}_bucket", **labels, le="18.0") <= 3
    assert 0 < value(series, f"{latency}_sum", **labels) < 60e6  # microseconds
    of_version = {"model": "fraud", "version": "10"}
    assert value(series, "model_infer_request_success_total", **of_version) == 3
    assert value(series, "model_infer_request_failure_total", **of_version) == 2
    assert value(series, "model_infer_request_duration_count", **of_version) == 5
    calls = "streamscore_server_calls_total"
    missing = {"entrypoint": "GRPC", "call": "Predict", "status": "NOT_FOUND"}
    assert value(series, calls, **missing) == 1
    lost = {"entrypoint": "REST", "call": "unknown", "status": "NOT_FOUND"}
    assert value(series, calls, **lost) == 1
    assert value(series, "streamscore_server_batch_rows_sum", model="fraud") == 2 * 3 + 1
    assert value(series, "streamscore_server_calls_in_flight") == 1  # the scrape itself
    available = {"model": "fraud", "version": "10", "state": "AVAILABLE"}
    assert value(series, "streamscore_server_model_version", **available) == 1
    assert value(series, "streamscore_server_loads_total", model="fraud", outcome="loaded") == 1
    assert value(series, "process_resident_memory_bytes") > 0
    made_up = [key for key in series if "made-up" in str(key)]
    assert not made_up


async def test_a_caller_that_is_gone_is_counted(serving: Any, predict_request: Any) -> None:
    async with serving() as running:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{running.port}") as channel:
            stub = PredictionServiceStub(channel)
            await stub.Predict(predict_request(np.zeros((1, 5), np.float32)))
            call = stub.Predict(predict_request(np.zeros((100_000, 5), np.float32)))
            async with asyncio.timeout(60):
                while (
                    value(await scrape(running.ports.http), "streamscore_server_calls_in_flight")
                    < 2
                    and not call.done()
                ):
                    await asyncio.sleep(0)
            call.cancel()
        async with asyncio.timeout(60):
            series = await scrape(running.ports.http)
            while value(series, "streamscore_server_calls_in_flight") > 1:
                series = await scrape(running.ports.http)
    total = sum(
        count
        for (name, labels), count in series.items()
        if name == "streamscore_server_calls_total" and ("call", "Predict") in labels
    )
    assert total == 2


async def test_own_port_needs_no_token(serving: Any) -> None:
    async with serving(metrics_port=0, token="secret") as running:
        series = await scrape(running.ports.metrics)
        async with aiohttp.ClientSession(f"http://127.0.0.1:{running.ports.http}") as web:
            assert (await web.get("/metrics")).status == 401
        async with aiohttp.ClientSession(f"http://127.0.0.1:{running.ports.metrics}") as web:
            assert (await web.get("/v2")).status == 404
        refused = {"entrypoint": "REST", "call": "metrics", "status": "UNAUTHENTICATED"}
        counted = await scrape(running.ports.metrics)
    assert value(series, "streamscore_server_calls_in_flight") == 0
    assert value(counted, "streamscore_server_calls_total", **refused) == 1


async def test_refused_tokens_are_counted_by_known_names(
    serving: Any, predict_request: Any
) -> None:
    async with serving(metrics_port=0, token="secret") as running:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{running.port}") as channel:
            with pytest.raises(grpc.aio.AioRpcError):
                await PredictionServiceStub(channel).Predict(
                    predict_request(np.zeros((1, 5), np.float32))
                )
            with pytest.raises(grpc.aio.AioRpcError):
                await channel.unary_unary("/made-up/Name")(b"")
        refused = frozenset({"entrypoint": "GRPC", "status": "UNAUTHENTICATED"}.items())
        async with asyncio.timeout(60):
            counts: dict[str, float] = {}
            while len(counts) < 2:  # a caller knows of its refusal before it is counted
                series = await scrape(running.ports.metrics)
                counts = {
                    dict(labels)["call"]: count
                    for (name, labels), count in series.items()
                    if name == "streamscore_server_calls_total" and refused <= labels
                }
    assert counts == {"Predict": 1, "unknown": 1}
