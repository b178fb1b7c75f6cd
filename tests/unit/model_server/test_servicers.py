"""Our server through TensorFlow Serving's own stubs, as a foreign client sees it."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from model_server.backends import load as load_by_files
from model_server.backends.tabular import INLINE_ROWS
from model_server.options import ServerOptions
from model_server.protos import (
    DataType,
    GetModelMetadataRequest,
    GetModelStatusRequest,
    ModelServiceStub,
    ModelVersionStatus,
    PredictionServiceStub,
    ReloadConfigRequest,
    SignatureDefMap,
)
from model_server.server import start
from model_server.tensors import from_proto

GOOD = np.zeros((2, 5), np.float32)
Code = grpc.StatusCode


@asynccontextmanager
async def channel_to(running: Any) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{running.port}") as channel:
        yield channel


async def refusal(call: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code(), caught.value.details() or ""


async def test_predict_answers_as_tensorflow_serving_does(
    serving: Any, predict_request: Any, rows: np.ndarray
) -> None:
    async with serving() as running, channel_to(running) as channel:
        response = await PredictionServiceStub(channel).Predict(predict_request(rows))
    assert response.model_spec.name == "fraud"
    assert response.model_spec.version.value == 10
    assert response.model_spec.signature_name == "serving_default"
    assert list(response.outputs) == ["scores"]
    assert from_proto(response.outputs["scores"]).dtype == np.float32


@pytest.mark.parametrize("row_count", [1, INLINE_ROWS, INLINE_ROWS + 1, 512])
async def test_loop_and_pool_give_one_answer(
    serving: Any, predict_request: Any, rows: np.ndarray, row_count: int
) -> None:
    batch = np.resize(rows, (row_count, 5))
    async with serving() as running, channel_to(running) as channel:
        stub = PredictionServiceStub(channel)
        whole = from_proto((await stub.Predict(predict_request(batch))).outputs["scores"])
        first = from_proto((await stub.Predict(predict_request(batch[:1]))).outputs["scores"])
    assert whole.shape == (row_count,)
    assert whole[0] == first[0]


async def test_small_batches_stay_on_the_loops_thread(
    models_dir: Path, predict_request: Any
) -> None:
    threads: list[str] = []

    def load(version_dir: Path, count: int) -> Any:
        model: Any = load_by_files(version_dir, count)
        model.warm_up = lambda: None
        for name in ("predict", "explain"):
            setattr(model, name, noting(getattr(model, name)))
        return model

    def noting(method: Any) -> Any:
        def run(rows: np.ndarray) -> np.ndarray:
            threads.append(threading.current_thread().name.split("_")[0])
            return method(rows)

        return run

    running = await start(
        ServerOptions.of_one_model(models_dir, "fraud", grace_s=0), load_model=load
    )
    async with channel_to(running) as channel:
        for row_count, signature in (
            (INLINE_ROWS, ""),
            (INLINE_ROWS + 1, ""),
            (1, "explain"),
        ):
            batch = np.zeros((row_count, 5), np.float32)
            request = predict_request(batch, signature=signature)
            await PredictionServiceStub(channel).Predict(request)
    await running.stop()
    assert threads == [threading.current_thread().name, "predict", "predict"]


async def test_float64_and_repeated_values_are_accepted(
    serving: Any, predict_request: Any, rows: np.ndarray
) -> None:
    repeated = predict_request(rows)
    repeated.inputs["inputs"].tensor_content = b""
    repeated.inputs["inputs"].float_val.extend(rows.ravel().tolist())
    async with serving() as running, channel_to(running) as channel:
        stub = PredictionServiceStub(channel)
        expected = await stub.Predict(predict_request(rows))
        for request in (predict_request(rows.astype(np.float64)), repeated):
            assert await stub.Predict(request) == expected


async def test_double_beyond_float32_is_scored_as_infinite(
    serving: Any, predict_request: Any
) -> None:
    batch = np.full((1, 5), 1e300)
    async with serving() as running, channel_to(running) as channel:
        response = await PredictionServiceStub(channel).Predict(predict_request(batch))
        refused = PredictionServiceStub(channel).Predict(
            predict_request(batch, signature="explain")
        )
        assert (await refusal(refused))[0] is Code.INVALID_ARGUMENT
    assert 0 <= from_proto(response.outputs["scores"])[0] <= 1


@pytest.mark.parametrize(
    ("values", "changes", "code", "words"),
    [
        (GOOD, {"name": "other"}, Code.NOT_FOUND, "request: Latest(other)"),
        (GOOD, {"name": ""}, Code.NOT_FOUND, "Servable not found for request: Latest()"),
        (GOOD, {"version": 9}, Code.NOT_FOUND, "Servable not found for request: Specific(fraud, 9"),
        (GOOD, {"signature": "x"}, Code.FAILED_PRECONDITION, 'signature key "x" not found'),
        (GOOD, {"input_name": "x"}, Code.INVALID_ARGUMENT, "sent {x}, expected {inputs}"),
        (np.zeros((2, 4), np.float32), {}, Code.INVALID_ARGUMENT, "shape (2, 4), expected (n, 5)"),
        (np.zeros(5, np.float32), {}, Code.INVALID_ARGUMENT, "shape (5,), expected (n, 5)"),
        (np.zeros((1, 1, 5), np.float32), {}, Code.INVALID_ARGUMENT, "shape (1, 1, 5)"),
        (np.zeros((2, 5), np.int64), {}, Code.INVALID_ARGUMENT, "is int64, expected float32"),
        (np.array([[b"a"] * 5]), {}, Code.INVALID_ARGUMENT, "is string"),
    ],
)
async def test_wrong_request_is_refused(
    serving: Any, predict_request: Any, values: Any, changes: Any, code: Any, words: str
) -> None:
    async with serving() as running, channel_to(running) as channel:
        call = PredictionServiceStub(channel).Predict(predict_request(values, **changes))
        actual, details = await refusal(call)
    assert (actual, words in details) == (code, True), details


async def test_malformed_tensor_extra_input_label_and_no_spec(
    serving: Any, predict_request: Any
) -> None:
    short, extra, label, bare = (predict_request(GOOD) for _ in range(4))
    short.inputs["inputs"].tensor_content = b"1234"
    extra.inputs["more"].CopyFrom(extra.inputs["inputs"])
    label.model_spec.version_label = "stable"
    bare.ClearField("model_spec")
    async with serving() as running, channel_to(running) as channel:
        for request in (short, extra, label, bare):
            call = PredictionServiceStub(channel).Predict(request)
            assert (await refusal(call))[0] is Code.INVALID_ARGUMENT


@pytest.mark.parametrize(
    ("wanted", "code"),
    [
        (["scores"], None),
        (["other"], Code.INVALID_ARGUMENT),
        (["scores", "scores"], Code.INVALID_ARGUMENT),
        (["contributions"], Code.INVALID_ARGUMENT),
    ],
)
async def test_output_filter(serving: Any, predict_request: Any, wanted: Any, code: Any) -> None:
    request = predict_request(GOOD)
    request.output_filter.extend(wanted)
    async with serving() as running, channel_to(running) as channel:
        call = PredictionServiceStub(channel).Predict(request)
        if code is None:
            assert list((await call).outputs) == wanted
        else:
            assert (await refusal(call))[0] is code


async def test_metadata_is_a_signature_def_map(serving: Any) -> None:
    request = GetModelMetadataRequest(metadata_field=["signature_def"])
    request.model_spec.name = "fraud"
    async with serving() as running, channel_to(running) as channel:
        response = await PredictionServiceStub(channel).GetModelMetadata(request)
    signatures = SignatureDefMap()
    assert response.metadata["signature_def"].Unpack(signatures)
    described = {
        name: (
            definition.method_name.removeprefix("tensorflow/serving/"),
            DataType.Name(definition.inputs["inputs"].dtype),
            [dim.size for dim in definition.inputs["inputs"].tensor_shape.dim],
            sorted(definition.outputs),
        )
        for name, definition in signatures.signature_def.items()
    }
    assert described == {
        "serving_default": ("predict", "DT_FLOAT", [-1, 5], ["scores"]),
        "explain": ("predict", "DT_FLOAT", [-1, 5], ["contributions"]),
        "classify": ("classify", "DT_STRING", [-1], ["classes", "scores"]),
        "regress": ("regress", "DT_STRING", [-1], ["outputs"]),
    }


@pytest.mark.parametrize(
    ("fields", "name", "code"),
    [
        ([], "fraud", Code.INVALID_ARGUMENT),
        (["weights"], "fraud", Code.INVALID_ARGUMENT),
        (["signature_def"], "other", Code.NOT_FOUND),
    ],
)
async def test_wrong_metadata_request_is_refused(
    serving: Any, fields: Any, name: str, code: Any
) -> None:
    request = GetModelMetadataRequest(metadata_field=fields)
    request.model_spec.name = name
    async with serving() as running, channel_to(running) as channel:
        call = PredictionServiceStub(channel).GetModelMetadata(request)
        assert (await refusal(call))[0] is code


async def test_status(serving: Any) -> None:
    request = GetModelStatusRequest()
    request.model_spec.name = "fraud"
    async with serving() as running, channel_to(running) as channel:
        stub = ModelServiceStub(channel)
        (status,) = (await stub.GetModelStatus(request)).model_version_status
        assert (status.version, status.state) == (10, ModelVersionStatus.AVAILABLE)
        assert status.HasField("status") and status.status.error_code == 0
        request.model_spec.version.value = 9
        refused = await refusal(stub.GetModelStatus(request))
        assert refused == (Code.NOT_FOUND, "Could not find version 9 of model fraud")
        request.model_spec.name = "other"
        request.model_spec.ClearField("version")
        refused = await refusal(stub.GetModelStatus(request))
        assert refused == (Code.NOT_FOUND, "Could not find any versions of model other")


def reload_request(name: str, base_path: Path) -> Any:
    request = ReloadConfigRequest()
    config = request.config.model_config_list.config.add(name=name, base_path=str(base_path))
    config.model_version_policy.all.SetInParent()
    config.version_labels["stable"] = 2
    return request


async def test_reload_replaces_the_configuration(
    serving: Any, models_dir: Path, predict_request: Any
) -> None:
    labelled = predict_request(GOOD, name="renamed")
    labelled.model_spec.version_label = "stable"
    async with (
        serving(admin_port=0) as running,
        channel_to(running) as channel,
        grpc.aio.insecure_channel(f"127.0.0.1:{running.ports.admin}") as admin,
    ):
        reload = ModelServiceStub(admin).HandleReloadConfigRequest
        response = await reload(reload_request("renamed", models_dir / "fraud"))
        assert response.status.error_code == 0
        stub = PredictionServiceStub(channel)
        assert (await stub.Predict(labelled)).model_spec.version.value == 2
        newest = await stub.Predict(predict_request(GOOD, name="renamed"))
        assert newest.model_spec.version.value == 10
        assert (await refusal(stub.Predict(predict_request(GOOD))))[0] is Code.NOT_FOUND


async def test_wrong_reload_is_refused_and_changes_nothing(
    serving: Any, models_dir: Path, predict_request: Any
) -> None:
    async with (
        serving(admin_port=0) as running,
        channel_to(running) as channel,
        grpc.aio.insecure_channel(f"127.0.0.1:{running.ports.admin}") as admin,
    ):
        good = reload_request("fraud", models_dir / "fraud")
        common = ModelServiceStub(channel).HandleReloadConfigRequest
        assert (await refusal(common(good)))[0] is Code.PERMISSION_DENIED
        relative, twice = reload_request("fraud", Path("fraud")), ReloadConfigRequest()
        twice.CopyFrom(good)
        twice.config.model_config_list.config.extend(good.config.model_config_list.config)
        for wrong in (ReloadConfigRequest(), relative, twice):
            refused = await refusal(ModelServiceStub(admin).HandleReloadConfigRequest(wrong))
            assert refused[0] is Code.INVALID_ARGUMENT
        await PredictionServiceStub(channel).Predict(predict_request(GOOD))
        missing = reload_request("none", models_dir / "none")
        refused = await refusal(ModelServiceStub(admin).HandleReloadConfigRequest(missing))
        assert refused[0] is Code.FAILED_PRECONDITION


async def test_backends_failure_is_internal_and_keeps_its_secrets(
    models_dir: Any, predict_request: Any, caplog: pytest.LogCaptureFixture
) -> None:
    def load_broken(version_dir: Any, threads: int) -> Any:
        model: Any = load_by_files(version_dir, threads)
        model.warm_up()
        model.warm_up = lambda: None
        model.predict = lambda rows: 1 / 0
        return model

    running = await start(
        ServerOptions.of_one_model(models_dir, "fraud", grace_s=0), load_model=load_broken
    )
    async with channel_to(running) as channel:
        code, details = await refusal(PredictionServiceStub(channel).Predict(predict_request(GOOD)))
    await running.stop()
    assert (code, "division" in details) == (Code.INTERNAL, False)
    assert "division by zero" in caplog.text


@pytest.mark.parametrize(
    "path",
    [
        "/tensorflow.serving.PredictionService/Predict",
        "/inference.GRPCInferenceService/ModelInfer",
        "/grpc.health.v1.Health/Check",
    ],
)
async def test_bytes_that_are_no_message_are_the_callers_fault(serving: Any, path: str) -> None:
    async with serving() as running, channel_to(running) as channel:
        for data in (b"\xff\xff", b"\x0a\x05\xff"):
            assert (await refusal(channel.unary_unary(path)(data)))[0] is Code.INVALID_ARGUMENT
