"""MLServer behind our client, and beside our server on the same bad requests."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
import grpc
import numpy as np
import pytest

from model_server.client import ClientOptions, PredictClient
from model_server.oip import tensors
from model_server.oip.messages import message, stub

DEADLINE_MS = 30_000.0


@pytest.mark.parametrize(
    ("server", "options"),
    [
        ("mlserver", {"protocol": "oip", "output_name": "predict"}),
        ("ours", {"protocol": "oip"}),
        ("ours", {"protocol": "tfserving"}),
    ],
)
@pytest.mark.parametrize("version", [None, 3])
async def test_our_client(
    request: Any,
    server: str,
    options: dict[str, str],
    version: int | None,
    rows: np.ndarray,
    expected: np.ndarray,
) -> None:
    ports = await asyncio.to_thread(request.getfixturevalue, server)
    client = PredictClient(
        ClientOptions(
            f"127.0.0.1:{ports.grpc}",
            "fraud",
            model_version=version,
            deadline_ms=DEADLINE_MS,
            **options,  # type: ignore[arg-type]
        )
    )
    scores = await client.predict(rows)
    assert (scores.model_name, scores.model_version) == ("fraud", 3)
    assert np.abs(scores.values - expected).max() < 1e-6
    # MLServer's metadata of a model names no versions.
    described = (await client.metadata()).model_version
    assert described == (3 if version or server == "ours" else 0)
    await client.close()


def infer_request(rows: np.ndarray, **changes: Any) -> Any:
    request = message("ModelInferRequest")(model_name="fraud", **changes)
    request.inputs.add(name="inputs", datatype="FP32", shape=rows.shape)
    request.raw_input_contents.append(tensors.to_raw(rows))
    return request


async def grpc_code(port: int, request: Any) -> str:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        try:
            await stub(channel, "ModelInfer")(request, timeout=30)
        except grpc.aio.AioRpcError as exc:
            return str(exc.code().name)
    return "OK"


@pytest.mark.parametrize(
    ("change", "code"),
    [({"model_name": "none"}, "NOT_FOUND"), ({"model_version": "9"}, "NOT_FOUND"), ({}, "OK")],
)
async def test_grpc_statuses_agree(
    ours: Any, mlserver: Any, rows: np.ndarray, change: dict[str, str], code: str
) -> None:
    request = infer_request(rows)
    for name, value in change.items():
        setattr(request, name, value)
    assert await grpc_code(ours.grpc, request) == code
    assert await grpc_code(mlserver.grpc, request) == code


def document(**changes: Any) -> dict[str, Any]:
    tensor = {"name": "inputs", "datatype": "FP32", "shape": [1, 5], "data": [0.0] * 5}
    return {"inputs": [tensor | changes]}


async def http_status(port: int, path: str, body: Any) -> int:
    async with (
        aiohttp.ClientSession(f"http://127.0.0.1:{port}") as web,
        web.post(path, json=body) as response,
    ):
        return response.status


FRAUD = "/v2/models/fraud/infer"


@pytest.mark.parametrize(
    ("path", "body", "statuses"),
    [
        (FRAUD, document(), {200}),
        ("/v2/models/none/infer", document(), {404}),
        ("/v2/models/fraud/versions/9/infer", document(), {404}),
        # MLServer says 422 for what its schema does not allow, and 400 or 500 further in.
        (FRAUD, document(datatype="NONE"), {400, 422}),
        (FRAUD, {"inputs": [{"name": "inputs"}]}, {400, 422}),
        (FRAUD, {"inputs": "x"}, {400, 422}),
        (FRAUD, {}, {400, 422}),
        (FRAUD, document(shape=[1, 4], data=[0.0] * 4), {400, 500}),
        (FRAUD, document(shape=[2, 5]), {400, 500}),
    ],
)
async def test_http_statuses_agree(
    ours: Any, mlserver: Any, path: str, body: Any, statuses: set[int]
) -> None:
    own = await http_status(ours.http, path, body)
    assert own == min(statuses)
    assert await http_status(mlserver.http, path, body) in statuses
