"""A tiny trained model, and real servers: ours, and ones that misbehave on demand."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import xgboost

from model_server.client import ClientOptions, PredictClient
from model_server.options import ServerOptions
from model_server.protos import (
    PredictionServiceServicer,
    PredictRequest,
    PredictResponse,
    add_prediction_service,
)
from model_server.server import RunningServer, start
from model_server.tensors import to_proto

FEATURES = ("amount", "count_5m", "sum_5m", "max_5m", "age_s")


@pytest.fixture(scope="session")
def rows() -> np.ndarray:
    return np.random.default_rng(7).normal(size=(200, len(FEATURES))).astype(np.float32)


@pytest.fixture(scope="session")
def booster(rows: np.ndarray) -> xgboost.Booster:
    labels = (rows[:, 0] + rows[:, 1] * rows[:, 2] > 0).astype(int)
    matrix = xgboost.DMatrix(rows, labels, feature_names=list(FEATURES))
    params = {"objective": "binary:logistic", "max_depth": 3, "nthread": 1}
    return xgboost.train(params, matrix, num_boost_round=8)


def features_document(names: tuple[str, ...] = FEATURES) -> dict[str, Any]:
    features = [{"name": name, "type": "float", "impute": 0.0} for name in names]
    return {"format": 1, "features": features, "config_hash": "abc"}


@pytest.fixture
def write_version(booster: xgboost.Booster) -> Callable[..., Path]:
    """Write a version folder; ``model`` and ``features`` replace what is right."""

    def write(
        folder: Path,
        *,
        model: xgboost.Booster | None = None,
        features: Any = None,
        file_name: str = "model.ubj",
    ) -> Path:
        folder.mkdir(parents=True)
        (model or booster).save_model(folder / file_name)
        document = features_document() if features is None else features
        (folder / "features.json").write_text(json.dumps(document))
        return folder

    return write


@pytest.fixture
def models_dir(tmp_path: Path, write_version: Callable[..., Path]) -> Path:
    for version in ("2", "10"):
        write_version(tmp_path / "models" / "fraud" / version)
    return tmp_path / "models"


@pytest.fixture
def serving(models_dir: Path) -> Callable[..., AbstractAsyncContextManager[RunningServer]]:
    """Run our server with the tiny model; keyword arguments are ServerOptions' or its model's."""

    @asynccontextmanager
    async def run(**changes: Any) -> AsyncIterator[RunningServer]:
        settings = {
            "models_dir": models_dir,
            "name": "fraud",
            "grace_s": 0.0,
            "http_port": 0,
        } | changes
        running = await start(ServerOptions.of_one_model(**settings))
        try:
            yield running
        finally:
            await running.stop()

    return run


Handler = Callable[[Any, Any], Awaitable[Any]]


class FakeService(PredictionServiceServicer):
    """Answers Predict with a coroutine of the test's, and counts the calls."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler
        self.calls = 0
        self.entered = asyncio.Event()

    async def Predict(self, request: Any, context: Any) -> Any:
        self.calls += 1
        self.entered.set()
        return await self._handler(request, context)


class Fake:
    """A running fake: its port, its service, and the server, to be killed."""

    def __init__(self, port: int, service: FakeService, server: grpc.aio.Server) -> None:
        self.port = port
        self.service = service
        self.server = server


@pytest.fixture
def faking() -> Callable[..., AbstractAsyncContextManager[Fake]]:
    """Run a real gRPC server around one handler."""

    @asynccontextmanager
    async def run(handler: Handler, port: int = 0) -> AsyncIterator[Fake]:
        server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        service = FakeService(handler)
        add_prediction_service(service, server)
        bound = server.add_insecure_port(f"127.0.0.1:{port}")
        await server.start()
        try:
            yield Fake(bound, service, server)
        finally:
            await server.stop(None)

    return run


@pytest.fixture
def raw_faking() -> Callable[..., AbstractAsyncContextManager[int]]:
    """Run a real gRPC server that answers Predict with given bytes; yields its port."""

    @asynccontextmanager
    async def run(answer: bytes) -> AsyncIterator[int]:
        async def predict(request: bytes, context: Any) -> bytes:
            return answer

        handler = grpc.unary_unary_rpc_method_handler(predict)
        methods = {"Predict": handler}
        server = grpc.aio.server()
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler("tensorflow.serving.PredictionService", methods),)
        )
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        try:
            yield port
        finally:
            await server.stop(None)

    return run


@pytest.fixture
def answer() -> Callable[..., Any]:
    """Build a PredictResponse, right unless told otherwise."""

    def build(
        values: Any,
        *,
        name: str = "fraud",
        version: int | None = 3,
        output: str = "scores",
        dtype: Any = np.float32,
    ) -> Any:
        response = PredictResponse()
        response.model_spec.name = name
        if version is not None:
            response.model_spec.version.value = version
        response.outputs[output].CopyFrom(to_proto(np.asarray(values, dtype=dtype)))
        return response

    return build


@pytest.fixture
def connecting() -> Callable[..., AbstractAsyncContextManager[PredictClient]]:
    """Open a client on a local port; a long deadline unless the test is about deadlines."""

    @asynccontextmanager
    async def run(port: int, *, clock: Any = None, **changes: Any) -> AsyncIterator[PredictClient]:
        settings = {"model_name": "fraud", "deadline_ms": 20_000.0} | changes
        options = ClientOptions(target=f"127.0.0.1:{port}", **settings)
        client = PredictClient(options, **({"clock": clock} if clock else {}))
        try:
            yield client
        finally:
            await client.close()

    return run


@pytest.fixture
def dead_port() -> int:
    """A port nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def black_hole() -> Iterator[int]:
    """A port where the kernel accepts connections and nobody ever reads them."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield int(listener.getsockname()[1])


@pytest.fixture
def predict_request() -> Callable[..., Any]:
    """Build a PredictRequest for the tiny model, right unless told otherwise."""

    def build(
        values: Any,
        *,
        name: str = "fraud",
        input_name: str = "inputs",
        signature: str = "",
        version: int | None = None,
    ) -> Any:
        request = PredictRequest()
        request.model_spec.name = name
        request.model_spec.signature_name = signature
        if version is not None:
            request.model_spec.version.value = version
        request.inputs[input_name].CopyFrom(to_proto(np.asarray(values)))
        return request

    return build
