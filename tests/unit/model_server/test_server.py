"""Life of a server: health, limits, start-up failures, drain."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from model_server.backends import load as load_by_files
from model_server.backends.tabular import INLINE_ROWS
from model_server.client import ClientOptions, PredictClient
from model_server.errors import ModelError, RepositoryError, StartupError
from model_server.options import ServerOptions
from model_server.protos import (
    MODEL_SERVICE,
    PREDICTION_SERVICE,
    GetModelStatusRequest,
    ModelServiceStub,
    ModelVersionStatus,
    PredictionServiceStub,
)
from model_server.server import ModelServer, serve, start

ROOT = Path(__file__).parents[3]
PATIENCE_S = 60.0
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVING = health_pb2.HealthCheckResponse.SERVING


def channel_to(port: int) -> grpc.aio.Channel:
    return grpc.aio.insecure_channel(f"127.0.0.1:{port}")


async def health_of(channel: grpc.aio.Channel, service: str = "") -> int:
    request = health_pb2.HealthCheckRequest(service=service)
    return int((await health_pb2_grpc.HealthStub(channel).Check(request)).status)


async def version_state(channel: grpc.aio.Channel) -> int:
    request = GetModelStatusRequest()
    request.model_spec.name = "fraud"
    response = await ModelServiceStub(channel).GetModelStatus(request)
    return int(response.model_version_status[0].state)


def slow_explainer(entered: threading.Event, go_on: threading.Event) -> Any:
    """Return a loader of a model whose ``explain`` says that it is in, and waits."""

    def load(version_dir: Path, threads: int) -> Any:
        model: Any = load_by_files(version_dir, threads)
        explain = model.explain

        def slow(rows: Any) -> Any:
            entered.set()
            assert go_on.wait(PATIENCE_S)
            return explain(rows)

        model.warm_up = lambda: None
        model.explain = slow
        return model

    return load


async def test_not_serving_until_the_model_is_warm(models_dir: Path, predict_request: Any) -> None:
    loading, go_on = threading.Event(), threading.Event()

    def load_slowly(version_dir: Path, threads: int) -> Any:
        loading.set()
        assert go_on.wait(PATIENCE_S)
        return load_by_files(version_dir, threads)

    options = ServerOptions.of_one_model(models_dir, "fraud", grace_s=0)
    server = ModelServer(options, load_model=load_slowly)
    async with channel_to((await server.listen()).grpc) as channel:
        task = asyncio.create_task(server.load())
        assert await asyncio.to_thread(loading.wait, PATIENCE_S)
        assert await health_of(channel) == NOT_SERVING
        assert await health_of(channel, PREDICTION_SERVICE) == NOT_SERVING
        assert await version_state(channel) == ModelVersionStatus.LOADING
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await PredictionServiceStub(channel).Predict(predict_request(np.zeros((1, 5))))
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        go_on.set()
        await task
        for service in ("", PREDICTION_SERVICE, MODEL_SERVICE):
            assert await health_of(channel, service) == SERVING
        assert await version_state(channel) == ModelVersionStatus.AVAILABLE
    await server.stop()
    await server.stop()  # a second time does no harm


async def test_model_is_warmed_before_serving(models_dir: Path) -> None:
    seen: list[str] = []

    def load(version_dir: Path, threads: int) -> Any:
        model: Any = load_by_files(version_dir, threads)
        model.warm_up = lambda: seen.append("warm")
        return model

    running = await start(
        ServerOptions.of_one_model(models_dir, "fraud", grace_s=0), load_model=load
    )
    assert seen == ["warm"]
    await running.stop()


async def test_reflection_lists_the_services(serving: Any) -> None:
    async with serving() as running, channel_to(running.port) as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        requests = [
            reflection_pb2.ServerReflectionRequest(list_services=""),
            reflection_pb2.ServerReflectionRequest(file_containing_symbol=PREDICTION_SERVICE),
        ]
        listed, described = [answer async for answer in stub.ServerReflectionInfo(iter(requests))]
    names = {service.name for service in listed.list_services_response.service}
    assert {PREDICTION_SERVICE, MODEL_SERVICE, "grpc.health.v1.Health"} <= names
    assert described.file_descriptor_response.file_descriptor_proto


async def test_drain_lets_calls_in_flight_end(models_dir: Path) -> None:
    entered, go_on = threading.Event(), threading.Event()
    load = slow_explainer(entered, go_on)
    running = await start(
        ServerOptions.of_one_model(models_dir, "fraud", grace_s=60), load_model=load
    )
    settings = {"deadline_ms": 60_000.0, "max_attempts": 1}
    client = PredictClient(ClientOptions(f"127.0.0.1:{running.port}", "fraud", **settings))
    call = asyncio.create_task(client.explain(np.zeros((1, 5), np.float32)))
    assert await asyncio.to_thread(entered.wait, PATIENCE_S)
    async with channel_to(running.port) as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        assert (await watch.read()).status == SERVING
        stopping = asyncio.create_task(running.stop())
        assert (await watch.read()).status == NOT_SERVING
        watch.cancel()
    assert not call.done()
    go_on.set()
    assert (await call).shape == (1, 5)
    await stopping
    await client.close()


async def test_too_many_calls_are_refused_not_queued(models_dir: Path) -> None:
    entered, go_on = threading.Event(), threading.Event()
    load = slow_explainer(entered, go_on)
    options = ServerOptions.of_one_model(models_dir, "fraud", grace_s=60, max_concurrent_rpcs=1)
    running = await start(options, load_model=load)
    settings = {"deadline_ms": 60_000.0}
    client = PredictClient(ClientOptions(f"127.0.0.1:{running.port}", "fraud", **settings))
    rows = np.zeros((1, 5), np.float32)
    first = asyncio.create_task(client.explain(rows))
    assert await asyncio.to_thread(entered.wait, PATIENCE_S)
    with pytest.raises(Exception, match="RESOURCE_EXHAUSTED"):
        await client.predict(rows)
    go_on.set()
    await first
    await client.close()
    await running.stop()


async def test_taken_port_is_a_startup_error(models_dir: Path, serving: Any) -> None:
    async with serving() as running:
        with pytest.raises(StartupError, match="Address already in use"):
            await start(ServerOptions.of_one_model(models_dir, "fraud", port=running.port))


async def test_missing_and_broken_models_stop_the_start(models_dir: Path) -> None:
    with pytest.raises(RepositoryError, match="other"):
        await start(ServerOptions.of_one_model(models_dir, "other"))
    for version in ("2", "10"):
        (models_dir / "fraud" / version / "model.ubj").write_bytes(b"garbage")
    with pytest.raises(ModelError, match="not an XGBoost model"):
        await start(ServerOptions.of_one_model(models_dir, "fraud"))


def test_serve_reports_a_failed_start_by_its_exit_code(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert serve(ServerOptions.of_one_model(tmp_path, "fraud")) == 1
    assert "event=start_failed reason=RepositoryError" in caplog.text


@pytest.mark.parametrize(
    "changes",
    [
        {"port": -1},
        {"port": 65_536},
        {"grace_s": -1.0},
        {"poll_s": -1.0},
        {"threads": 0},
        {"max_concurrent_rpcs": 0},
        {"max_message_bytes": 0},
    ],
)
def test_wrong_settings_are_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(changes))):
        ServerOptions.of_one_model(tmp_path, "fraud", **changes)


@contextmanager
def process(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    child = subprocess.Popen(
        [sys.executable, *arguments],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield child
    finally:
        child.kill()
        child.communicate()


def read_line(child: subprocess.Popen[str]) -> str:
    assert child.stdout is not None
    assert select.select([child.stdout], [], [], PATIENCE_S)[0], "the process said nothing"
    return child.stdout.readline().strip()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_command_serves_until_a_signal(
    models_dir: Path, rows: np.ndarray, number: signal.Signals
) -> None:
    arguments = ["-m", "model_server", "--models-dir", str(models_dir), "--model-name", "fraud"]

    async def ask(port: str) -> int:
        client = PredictClient(
            ClientOptions(f"127.0.0.1:{port}", "fraud", deadline_ms=PATIENCE_S * 1_000.0)
        )
        version = (await client.predict(rows)).model_version
        await client.close()
        return version

    with process(*arguments, "--model-version", "2") as child:
        port = read_line(child).removeprefix("ready port=")
        assert asyncio.run(ask(port)) == 2
        child.send_signal(number)
        assert child.wait(PATIENCE_S) == 0


@pytest.mark.parametrize(
    ("extra", "exit_code"), [(["--port", "70000"], 2), (["--model-version", "9"], 1)]
)
def test_command_exit_codes(models_dir: Path, extra: list[str], exit_code: int) -> None:
    arguments = ["-m", "model_server", "--models-dir", str(models_dir), "--model-name", "fraud"]
    with process(*arguments, *extra) as child:
        assert child.wait(PATIENCE_S) == exit_code


# A batch too large for the event loop's thread announces itself, then waits for a line.
SLOW_SERVER = """
import sys
from pathlib import Path
from model_server.backends import load as load_by_files
from model_server.options import ServerOptions
from model_server.server import serve

def load(version_dir, threads):
    model = load_by_files(version_dir, threads)
    model.warm_up()
    predict = model.predict
    def slow(rows):
        print("predicting", flush=True)
        sys.stdin.readline()
        return predict(rows)
    model.warm_up = lambda: None
    model.predict = slow
    return model

options = ServerOptions.of_one_model(Path(sys.argv[1]), "fraud", grace_s=60)
sys.exit(serve(options, on_ready=lambda ports: print(ports.grpc, flush=True), load_model=load))
"""


async def test_sigterm_drains_a_call_in_flight(models_dir: Path) -> None:
    def port_refuses() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", int(port))) != 0

    with process("-c", SLOW_SERVER, str(models_dir)) as child:
        port = read_line(child)
        settings = {"deadline_ms": PATIENCE_S * 1_000.0, "max_attempts": 1}
        client = PredictClient(ClientOptions(f"127.0.0.1:{port}", "fraud", **settings))
        rows = np.zeros((INLINE_ROWS + 1, 5), np.float32)
        call = asyncio.create_task(client.predict(rows))
        assert await asyncio.to_thread(read_line, child) == "predicting"
        child.terminate()
        async with asyncio.timeout(PATIENCE_S):
            while not port_refuses():  # the drain has begun: nothing new is taken
                await asyncio.sleep(0.01)
        assert not call.done() and child.poll() is None
        assert child.stdin is not None
        child.stdin.write("go\n")
        child.stdin.flush()
        assert len((await call).values) == len(rows)
        await client.close()
        assert await asyncio.to_thread(child.wait, PATIENCE_S) == 0
