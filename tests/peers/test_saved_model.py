"""TensorFlow's SavedModels, in TensorFlow's own environment, behind our server."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import numpy as np
import psutil
import pytest

from model_server.backends.remote import RemoteModel
from model_server.batching import BatchingOptions
from model_server.errors import ModelError
from model_server.lifecycle import ModelConfig
from model_server.options import ServerOptions
from model_server.protos import PredictionServiceStub, PredictRequest
from model_server.server import RunningServer, start
from model_server.tensors import from_proto, to_proto
from tests.peers.conftest import PEERS

PYTHON = str(PEERS / "tensorflow" / "bin" / "python")
PATIENCE_S = 60.0

Made = tuple[Path, dict[str, Any]]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return {"folder": tmp_path_factory.mktemp("saved")}


@pytest.fixture
def made(saved: dict[str, Any], stranger: Callable[..., dict[str, Any]]) -> Made:
    """The models, made once, and TensorFlow's answers."""
    if "answers" not in saved:
        saved["answers"] = stranger(
            "tensorflow", "make_saved_model.py", folder=str(saved["folder"])
        )
    return saved["folder"], saved["answers"]


@asynccontextmanager
async def serving(folder: Path, *names: str, **options: Any) -> AsyncIterator[RunningServer]:
    batching = options.pop("batching", BatchingOptions())
    models = tuple(ModelConfig(name, folder, batching=batching) for name in names)
    running = await start(ServerOptions(models, http_port=0, model_python=PYTHON, **options))
    try:
        yield running
    finally:
        await running.stop()


def predict(model: str, signature: str = "", **inputs: np.ndarray) -> PredictRequest:
    request = PredictRequest()
    request.model_spec.name = model
    request.model_spec.signature_name = signature
    for name, array in inputs.items():
        request.inputs[name].CopyFrom(to_proto(array))
    return request


async def test_answers_are_tensorflows_by_every_protocol(made: Made, rows: np.ndarray) -> None:
    folder, answers = made
    keras = answers["keras"]
    async with (
        serving(folder, "keras", batching=BatchingOptions(max_rows=64)) as running,
        grpc.aio.insecure_channel(f"127.0.0.1:{running.port}") as channel,
        aiohttp.ClientSession(f"http://127.0.0.1:{running.ports.http}") as web,
    ):
        stub = PredictionServiceStub(channel)
        found = [
            from_proto((await stub.Predict(predict("keras", **{keras["input"]: part}))).outputs[
                keras["output"]
            ]).ravel()
            for part in (rows, rows[:1], rows.astype(np.float64))
        ]  # fmt: skip
        together = await asyncio.gather(
            *(
                stub.Predict(predict("keras", **{keras["input"]: rows[n : n + 1]}))
                for n in range(50)
            )
        )
        document = {"instances": rows.tolist()}
        async with web.post("/v1/models/keras:predict", json=document) as response:
            rest = np.ravel((await response.json())["predictions"])
        tensor = {
            "name": keras["input"],
            "datatype": "FP32",
            "shape": rows.shape,
            "data": rows.ravel().tolist(),
        }
        async with web.post("/v2/models/keras/infer", json={"inputs": [tensor]}) as response:
            oip = np.array((await response.json())["outputs"][0]["data"])
        async with web.get("/v2/models/keras") as response:
            assert (await response.json())["platform"] == "tensorflow_savedmodel"
    scores = np.array(keras["scores"])
    for values in (found[0], found[2], rest, oip):
        assert np.abs(values - scores).max() < 1e-6
    assert abs(found[1][0] - scores[0]) < 1e-6
    each = [from_proto(answer.outputs[keras["output"]]).item() for answer in together]
    assert np.abs(np.array(each) - scores[:50]).max() < 1e-6


async def test_strings_integers_and_several_signatures(made: Made, rows: np.ndarray) -> None:
    folder, answers = made
    names = np.array([f"nº {n}".encode() for n in range(len(rows))], object)
    async with (
        serving(folder, "mixed") as running,
        grpc.aio.insecure_channel(f"127.0.0.1:{running.port}") as channel,
    ):
        stub = PredictionServiceStub(channel)
        greeted = (await stub.Predict(predict("mixed", x=rows[:, :3], name=names))).outputs
        numbers = np.arange(6).reshape(1, 2, 3)
        doubled = (await stub.Predict(predict("mixed", "double", n=numbers))).outputs
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Predict(predict("mixed", "invert", m=np.zeros((2, 2), np.float32)))
        await stub.Predict(predict("mixed", "double", n=numbers))  # goes on
    assert np.allclose(from_proto(greeted["total"]), answers["total"], atol=1e-5)
    assert from_proto(greeted["greeting"]).tolist() == [b"hello " + name for name in names]
    assert np.array_equal(from_proto(doubled["twice"]), numbers * 2)
    assert np.array_equal(from_proto(doubled["half"]), numbers / 2)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "invertible" in (caught.value.details() or "")


async def test_a_process_that_dies_is_started_again(made: Made) -> None:
    folder, _ = made
    numbers = np.arange(3)
    async with (
        serving(folder, "mixed") as running,
        grpc.aio.insecure_channel(f"127.0.0.1:{running.port}") as channel,
    ):
        stub = PredictionServiceStub(channel)
        (child,) = workers()
        child.send_signal(signal.SIGKILL)
        child.wait()
        codes = set()
        async with asyncio.timeout(PATIENCE_S):
            while True:
                try:
                    await stub.Predict(predict("mixed", "double", n=numbers))
                    break
                except grpc.aio.AioRpcError as exc:
                    codes.add(exc.code())
                    await asyncio.sleep(0.05)
        assert codes == {grpc.StatusCode.UNAVAILABLE}
        (again,) = workers()
        assert again.pid != child.pid
    assert not workers()


def workers() -> list[psutil.Process]:
    return [
        child
        for child in psutil.Process(os.getpid()).children(recursive=True)
        if "model_server.backends.workers.saved_model" in child.cmdline()
    ]


def test_a_broken_model_is_refused_with_tensorflows_reason(made: Made, tmp_path: Path) -> None:
    folder, _ = made
    shutil.copytree(folder / "keras" / "1", tmp_path / "1")
    shutil.rmtree(tmp_path / "1" / "variables")
    with pytest.raises(ModelError, match="NotFoundError"):
        RemoteModel.load("saved_model", "tensorflow_savedmodel", tmp_path / "1", 1, PYTHON)
    assert not workers()


def test_without_tensorflow_the_error_says_what_to_do(made: Made) -> None:
    folder, _ = made
    mlserver = str(PEERS / "mlserver" / "bin" / "python")
    with pytest.raises(ModelError, match="make setup EXTRA=tensorflow"):
        RemoteModel.load("saved_model", "x", folder / "keras" / "1", 1, mlserver)


async def test_warm_up_requests_are_replayed(made: Made, caplog: pytest.LogCaptureFixture) -> None:
    folder, _ = made
    caplog.set_level("INFO")
    async with serving(folder, "mixed"):
        pass
    assert "event=warmed_up requests=1 left_out=1" in caplog.text
