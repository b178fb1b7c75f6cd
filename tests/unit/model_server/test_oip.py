"""The Open Inference Protocol's calls, over gRPC and HTTP."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import numpy as np
import orjson
import pytest

from model_server.backends import load as load_by_files
from model_server.oip import tensors
from model_server.oip.messages import message, stub
from model_server.options import ServerOptions
from model_server.server import ModelServer

COLUMNS = ("amount", "count_5m", "sum_5m", "max_5m", "age_s")
GOOD = np.zeros((2, 5), np.float32)
Code = grpc.StatusCode


@pytest.fixture
async def channel(serving: Any) -> AsyncIterator[grpc.aio.Channel]:
    async with (
        serving(admin_port=0) as running,
        grpc.aio.insecure_channel(f"127.0.0.1:{running.ports.admin}") as opened,
    ):
        yield opened


@pytest.fixture
async def web(serving: Any) -> AsyncIterator[aiohttp.ClientSession]:
    async with (
        serving(admin_http_port=0) as running,
        aiohttp.ClientSession(f"http://127.0.0.1:{running.ports.admin_http}") as opened,
    ):
        yield opened


@asynccontextmanager
async def session(running: Any) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(f"http://127.0.0.1:{running.ports.http}") as opened:
        yield opened


def infer_request(array: np.ndarray, *, raw: bool = True, **changes: Any) -> Any:
    request = message("ModelInferRequest")(
        model_name=changes.get("name", "fraud"), model_version=changes.get("version", ""), id="42"
    )
    tensor = request.inputs.add(name=changes.get("input_name", "inputs"))
    if raw:
        tensor.datatype = tensors.datatype_of(array.dtype)
        tensor.shape.extend(array.shape)
        request.raw_input_contents.append(tensors.to_raw(array))
    else:
        tensors.fill_contents(tensor, array)
    for name in changes.get("outputs", []):
        request.outputs.add(name=name)
    if "signature" in changes:
        request.parameters["signature_name"].string_param = changes["signature"]
    return request


def scores_of(response: Any) -> np.ndarray:
    (tensor,) = response.outputs
    if response.raw_output_contents:
        (data,) = response.raw_output_contents
        return tensors.from_raw(tensor.name, tensor.datatype, tuple(tensor.shape), data)
    return tensors.from_contents(tensor)


@pytest.fixture
def expected(models_dir: Path, rows: np.ndarray) -> np.ndarray:
    return load_by_files(models_dir / "fraud" / "10", 1).predict(rows)  # type: ignore[attr-defined]


@pytest.mark.parametrize("raw", [True, False])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
async def test_grpc_infer(
    channel: Any, rows: np.ndarray, expected: np.ndarray, raw: bool, dtype: Any
) -> None:
    response = await stub(channel, "ModelInfer")(infer_request(rows.astype(dtype), raw=raw))
    assert (response.model_name, response.model_version, response.id) == ("fraud", "10", "42")
    assert bool(response.raw_output_contents) is raw
    assert (response.outputs[0].name, response.outputs[0].datatype) == ("scores", "FP32")
    assert np.array_equal(scores_of(response), expected)


async def test_integers_stand_for_floats_and_a_single_input_may_have_any_name(
    channel: Any,
) -> None:
    whole = np.array([[1, 2, 3, 4, 5]], np.int64)
    infer = stub(channel, "ModelInfer")
    as_floats = await infer(infer_request(whole.astype(np.float32)))
    as_integers = await infer(infer_request(whole, input_name="predict"))
    assert scores_of(as_floats) == scores_of(as_integers)


async def test_table_of_columns_with_missing_ones(channel: Any, web: Any, rows: np.ndarray) -> None:
    filled = rows.copy()
    filled[:, 3] = 0.0  # max_5m is not sent; its imputed value is 0
    request = message("ModelInferRequest")(model_name="fraud")
    document: dict[str, Any] = {"inputs": []}
    for index, name in enumerate(COLUMNS):
        if name != "max_5m":
            tensor = request.inputs.add(name=name)
            tensors.fill_contents(tensor, rows[:, index])
            document["inputs"].append(
                {
                    "name": name,
                    "datatype": "FP32",
                    "shape": [len(rows), 1],
                    "data": rows[:, index].tolist(),
                }
            )
    infer = stub(channel, "ModelInfer")
    whole = scores_of(await infer(infer_request(filled)))
    assert np.array_equal(scores_of(await infer(request)), whole)
    async with web.post("/v2/models/fraud/infer", json=document) as response:
        answer = await response.json()
    assert np.allclose(answer["outputs"][0]["data"], whole, atol=1e-7)


async def test_signature_is_chosen_by_a_parameter(channel: Any, rows: np.ndarray) -> None:
    request = infer_request(rows, signature="explain", outputs=["contributions"])
    response = await stub(channel, "ModelInfer")(request)
    assert scores_of(response).shape == rows.shape


@pytest.mark.parametrize(
    ("array", "changes", "code", "words"),
    [
        (GOOD, {"name": "other"}, Code.NOT_FOUND, "Servable not found"),
        (GOOD, {"version": "9"}, Code.NOT_FOUND, "Servable not found"),
        (GOOD, {"version": "9" * 30}, Code.INVALID_ARGUMENT, "label"),
        (GOOD, {"version": "canary"}, Code.INVALID_ARGUMENT, "label: canary"),
        (GOOD, {"signature": "x"}, Code.FAILED_PRECONDITION, "not found"),
        (GOOD, {"outputs": ["x"]}, Code.INVALID_ARGUMENT, "alias not found"),
        (np.zeros((2, 4), np.float32), {}, Code.INVALID_ARGUMENT, "shape (2, 4), expected (n, 5)"),
        (np.array([[b"a"] * 5], object), {}, Code.INVALID_ARGUMENT, "is string"),
    ],
)
async def test_wrong_grpc_request_is_refused(
    channel: Any, array: Any, changes: Any, code: Any, words: str
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub(channel, "ModelInfer")(infer_request(array, **changes))
    assert caught.value.code() is code
    assert words in (caught.value.details() or "")


async def test_malformed_grpc_requests_are_refused(channel: Any) -> None:
    too_few, both, twice, none = (infer_request(GOOD) for _ in range(4))
    too_few.inputs.add(name="y", datatype="FP32", shape=[1])
    both.inputs[0].contents.fp32_contents.append(1.0)
    twice.inputs.append(twice.inputs[0])
    twice.raw_input_contents.append(twice.raw_input_contents[0])
    del none.inputs[:]
    del none.raw_input_contents[:]
    for request in (too_few, both, twice, none):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub(channel, "ModelInfer")(request)
        assert caught.value.code() is Code.INVALID_ARGUMENT


async def test_grpc_health_and_metadata(channel: Any) -> None:
    assert (await stub(channel, "ServerLive")(message("ServerLiveRequest")())).live
    assert (await stub(channel, "ServerReady")(message("ServerReadyRequest")())).ready
    ready = message("ModelReadyRequest")
    assert (await stub(channel, "ModelReady")(ready(name="fraud"))).ready
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub(channel, "ModelReady")(ready(name="fraud", version="9"))
    assert caught.value.code() is Code.NOT_FOUND
    server = await stub(channel, "ServerMetadata")(message("ServerMetadataRequest")())
    assert (server.name, "binary_tensor_data" in server.extensions) == ("streamscore", True)
    model = await stub(channel, "ModelMetadata")(message("ModelMetadataRequest")(name="fraud"))
    assert (model.name, list(model.versions), model.platform) == (
        "fraud",
        ["10"],
        "xgboost_xgboost",
    )
    assert [(t.name, t.datatype, list(t.shape)) for t in model.inputs] == [
        ("inputs", "FP32", [-1, 5])
    ]
    assert [(t.name, t.datatype, list(t.shape)) for t in model.outputs] == [
        ("scores", "FP32", [-1])
    ]


async def test_grpc_load_unload_and_index(
    channel: Any, models_dir: Path, write_version: Callable[..., Path]
) -> None:
    index = message("RepositoryIndexRequest")

    async def states() -> list[tuple[str, str]]:
        listed = await stub(channel, "RepositoryIndex")(index())
        return [(entry.version, entry.state) for entry in listed.models]

    load = stub(channel, "RepositoryModelLoad")
    unload = stub(channel, "RepositoryModelUnload")
    write_version(models_dir / "fraud" / "11")
    await load(message("RepositoryModelLoadRequest")(model_name="fraud"))
    assert await states() == [("11", "READY"), ("10", "UNAVAILABLE")]
    await unload(message("RepositoryModelUnloadRequest")(model_name="fraud"))
    assert await states() == []
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await unload(message("RepositoryModelUnloadRequest")(model_name="fraud"))
    assert caught.value.code() is Code.NOT_FOUND
    await load(message("RepositoryModelLoadRequest")(model_name="fraud"))
    assert await states() == [("11", "READY")]
    for name in ("other", "../fraud"):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await load(message("RepositoryModelLoadRequest")(model_name=name))
        assert caught.value.code() is Code.NOT_FOUND


async def test_admin_calls_are_refused_on_the_common_ports(serving: Any) -> None:
    async with (
        serving(admin_port=0, admin_http_port=0) as running,
        grpc.aio.insecure_channel(f"127.0.0.1:{running.port}") as opened,
        session(running) as web,
    ):
        for verb in ("Load", "Unload"):
            request = message(f"RepositoryModel{verb}Request")(model_name="fraud")
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub(opened, f"RepositoryModel{verb}")(request)
            assert caught.value.code() is Code.PERMISSION_DENIED
            async with web.post(f"/v2/repository/models/fraud/{verb.lower()}") as response:
                assert response.status == 403


async def test_not_ready_while_loading(models_dir: Path) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def load_slowly(folder: Path, threads: int) -> Any:
        begun.set()
        assert go_on.wait(60)
        return load_by_files(folder, threads)

    options = ServerOptions.of_one_model(models_dir, "fraud", grace_s=0, http_port=0)
    server = ModelServer(options, load_model=load_slowly)
    ports = await server.listen()
    loading = asyncio.create_task(server.load())
    async with aiohttp.ClientSession(f"http://127.0.0.1:{ports.http}") as web:
        assert await asyncio.to_thread(begun.wait, 60)
        for path in ("/v2/health/ready", "/v2/models/fraud/ready"):
            async with web.get(path) as response:
                assert response.status == 503
        async with web.get("/v2/health/live") as response:
            assert (response.status, await response.json()) == (200, {"live": True})
        go_on.set()
        await loading
        async with web.get("/v2/health/ready") as response:
            assert response.status == 200
    await server.stop()


async def test_http_infer_in_json(web: Any, rows: np.ndarray, expected: np.ndarray) -> None:
    tensor = {"name": "inputs", "datatype": "FP32", "shape": list(rows.shape)}
    for data in (rows.tolist(), rows.ravel().tolist()):
        document = {"id": "7", "inputs": [tensor | {"data": data}]}
        async with web.post("/v2/models/fraud/versions/10/infer", json=document) as response:
            answer = await response.json()
        assert (answer["id"], answer["model_name"], answer["model_version"]) == ("7", "fraud", "10")
        (output,) = answer["outputs"]
        assert (output["name"], output["datatype"], output["shape"]) == ("scores", "FP32", [200])
        assert np.array_equal(np.array(output["data"], np.float32), expected)


async def test_http_binary_data(web: Any, rows: np.ndarray, expected: np.ndarray) -> None:
    data = tensors.to_raw(rows)
    tensor = {
        "name": "inputs",
        "datatype": "FP32",
        "shape": list(rows.shape),
        "parameters": {"binary_data_size": len(data)},
    }
    for wish in (
        {"parameters": {"binary_data_output": True}},
        {"outputs": [{"name": "scores", "parameters": {"binary_data": True}}]},
    ):
        header = orjson.dumps({"inputs": [tensor]} | wish)
        async with web.post(
            "/v2/models/fraud/infer",
            data=header + data,
            headers={"Inference-Header-Content-Length": str(len(header))},
        ) as response:
            body = await response.read()
            length = int(response.headers["Inference-Header-Content-Length"])
        (output,) = orjson.loads(body[:length])["outputs"]
        assert output["parameters"] == {"binary_data_size": len(rows) * 4}
        assert np.array_equal(np.frombuffer(body[length:], np.float32), expected)


FP32 = {"name": "inputs", "datatype": "FP32", "shape": [1, 5]}


@pytest.mark.parametrize(
    ("path", "document", "status", "words"),
    [
        ("other/infer", {"inputs": [FP32 | {"data": [0] * 5}]}, 404, "not found"),
        ("fraud/versions/9/infer", {"inputs": [FP32 | {"data": [0] * 5}]}, 404, "not found"),
        ("fraud/infer", {"inputs": [FP32 | {"data": [0] * 4}]}, 400, "4 values"),
        ("fraud/infer", {"inputs": [FP32 | {"data": ["a"] * 5}]}, 400, "not FP32"),
        ("fraud/infer", {"inputs": [FP32 | {"shape": [5], "data": [0] * 5}]}, 400, "shape (5,)"),
        ("fraud/infer", {"inputs": [FP32 | {"shape": "x"}]}, 400, "shape"),
        ("fraud/infer", {"inputs": [{"name": "inputs"}]}, 400, "datatype"),
        ("fraud/infer", {"inputs": {}}, 400, "list of objects"),
        ("fraud/infer", {}, 400, "one input"),
        ("fraud/infer", [], 400, "must be an object"),
        ("fraud/infer", {"inputs": [FP32 | {"parameters": {"binary_data_size": 9}}]}, 400, "9"),
        ("fraud/infer", {"inputs": [FP32 | {"data": [0] * 5}] * 2}, 400, "twice"),
        ("fraud/nothing", {}, 404, "Not Found"),
    ],
)
async def test_wrong_http_request_is_refused(
    web: Any, path: str, document: Any, status: int, words: str
) -> None:
    async with web.post(f"/v2/models/{path}", json=document) as response:
        answer = await response.json()
    assert response.status == status
    assert words in answer["error"]


async def test_http_metadata_index_and_admin(web: Any) -> None:
    async with web.get("/v2") as response:
        assert (await response.json())["name"] == "streamscore"
    async with web.get("/v2/models/fraud") as response:
        assert (await response.json())["inputs"] == [
            {"name": "inputs", "datatype": "FP32", "shape": [-1, 5]}
        ]
    async with web.get("/v2/models/fraud/versions/10/ready") as response:
        assert response.status == 200
    ready = {"name": "fraud", "version": "10", "state": "READY", "reason": ""}
    for extra in ({}, {"json": {"ready": True}}):
        async with web.post("/v2/repository/index", **extra) as response:
            assert await response.json() == [ready]
    async with web.post("/v2/repository/models/fraud/unload") as response:
        assert response.status == 200
    async with web.get("/v2/models/fraud/ready") as response:
        assert response.status == 404
    async with web.post("/v2/repository/models/fraud/load") as response:
        assert response.status == 200
    async with web.get("/v2/health/ready") as response:
        assert response.status == 200


async def test_oversize_body_is_refused(serving: Any) -> None:
    async with (
        serving(max_message_bytes=1_000) as running,
        session(running) as web,
        web.post("/v2/models/fraud/infer", data=b"x" * 2_000) as response,
    ):
        assert response.status == 413
        assert "error" in await response.json()
