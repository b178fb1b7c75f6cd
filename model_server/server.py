"""The server process: listen, load, warm up, serve, drain.

Health says NOT_SERVING from the first moment of listening until the model is warm, then SERVING,
and NOT_SERVING again from the first moment of a drain. Calls in flight get ``grace_s`` to end.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import grpc  # type: ignore[import-untyped, unused-ignore]
from grpc_health.v1 import (  # type: ignore[import-untyped, unused-ignore]
    health,
    health_pb2,
    health_pb2_grpc,
)
from grpc_reflection.v1alpha import reflection  # type: ignore[import-untyped, unused-ignore]

from model_server import repository
from model_server.backends.base import Model
from model_server.backends.xgboost import XGBoostModel
from model_server.errors import ModelServerError, StartupError
from model_server.protos import (
    MODEL_SERVICE,
    PREDICTION_SERVICE,
    add_model_service,
    add_prediction_service,
)
from model_server.servables import Servable, Servables
from model_server.servicers import ModelService, PredictionService

__all__ = ["ModelServer", "RunningServer", "ServerOptions", "serve", "start"]

logger = logging.getLogger(__name__)

# "" is the server as a whole, which plain probes ask for.
_HEALTH_NAMES = ("", PREDICTION_SERVICE, MODEL_SERVICE)

LoadModel = Callable[[Path, int], Model]


@dataclass(frozen=True)
class ServerOptions:
    """Settings of the server.

    Attributes:
        models_dir: Root of the model repository.
        model_name: Folder in it, and the name that clients ask for.
        model_version: Version to serve; the newest when None.
        host: Address to listen on; the default is reachable from this machine only.
        port: Port to listen on; 0 takes a free one.
        max_message_bytes: Largest request or response, in bytes.
        max_concurrent_rpcs: Calls at work at once; more are refused with RESOURCE_EXHAUSTED.
        grace_s: Seconds that calls in flight get when the server stops.
        threads: Large batches and explanations worked on at once, each by one XGBoost thread.

    Raises:
        ValueError: A setting is out of range.
    """

    models_dir: Path
    model_name: str
    model_version: int | None = None
    host: str = "127.0.0.1"
    port: int = 0
    max_message_bytes: int = 16 * 1024 * 1024
    max_concurrent_rpcs: int = 256
    grace_s: float = 10.0
    threads: int = 2

    def __post_init__(self) -> None:
        """Refuse settings out of range."""
        if not 0 <= self.port <= 65_535:
            raise ValueError(f"port must be 0 to 65535, is {self.port}")
        if self.grace_s < 0:
            raise ValueError(f"grace_s must be at least 0, is {self.grace_s}")
        for name in ("max_message_bytes", "max_concurrent_rpcs", "threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, is {getattr(self, name)}")


def load_xgboost(version_dir: Path, threads: int) -> Model:
    """Load a version folder as an XGBoost model."""
    return XGBoostModel.load(version_dir, threads=threads)


class ModelServer:
    """A server in three steps: ``listen``, ``load``, ``stop``. One event loop owns it."""

    def __init__(self, options: ServerOptions, *, load_model: LoadModel = load_xgboost) -> None:
        """Keep the settings; nothing is opened yet.

        Args:
            options: Settings.
            load_model: Takes a version folder and the threads per call; may block.
        """
        self._options = options
        self._load_model = load_model
        self._servables = Servables(options.model_name)
        self._health = health.aio.HealthServicer()
        self._executor = ThreadPoolExecutor(options.threads, thread_name_prefix="predict")
        self._server: grpc.aio.Server | None = None

    async def listen(self) -> int:
        """Open the port; every model is still NOT_SERVING.

        Returns:
            The port.

        Raises:
            StartupError: The address cannot be had.
        """
        await self._set_health(health_pb2.HealthCheckResponse.NOT_SERVING)
        server = self._new_server()
        address = f"{self._options.host}:{self._options.port}"
        try:
            port = int(server.add_insecure_port(address))
        except RuntimeError as exc:
            raise StartupError(f"cannot listen on {address}: is the port taken?") from exc
        await server.start()
        self._server = server
        logger.info("event=listening host=%s port=%d", self._options.host, port)
        return port

    async def load(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Load and warm up the model, then say SERVING.

        Raises:
            RepositoryError: The repository has no such model or version.
            ModelError: The model cannot be served.
        """
        options, begun_s = self._options, clock()
        found = repository.find_version(
            options.models_dir, options.model_name, options.model_version
        )
        self._servables.loading(found.version)
        try:
            # In a thread: health and status must answer meanwhile.
            model = await asyncio.to_thread(self._load_warm, found.path)
        except BaseException:
            self._servables.failed(found.version)
            raise
        self._servables.publish(Servable(found.name, found.version, model))
        await self._set_health(health_pb2.HealthCheckResponse.SERVING)
        took_ms = (clock() - begun_s) * 1_000.0
        logger.info(
            "event=serving model=%s version=%d took_ms=%.0f", found.name, found.version, took_ms
        )

    async def stop(self) -> None:
        """Refuse new calls, give those in flight ``grace_s``, then close. May be called twice."""
        logger.info("event=draining grace_s=%.1f", self._options.grace_s)
        self._servables.retire()
        await self._health.enter_graceful_shutdown()
        if self._server is not None:
            await self._server.stop(self._options.grace_s)
        self._executor.shutdown(wait=False, cancel_futures=True)
        logger.info("event=stopped")

    def _new_server(self) -> grpc.aio.Server:
        limit_bytes = self._options.max_message_bytes
        server = grpc.aio.server(
            maximum_concurrent_rpcs=self._options.max_concurrent_rpcs,
            options=[
                ("grpc.max_receive_message_length", limit_bytes),
                ("grpc.max_send_message_length", limit_bytes),
                # Two servers on one port would share the calls: refuse the second instead.
                ("grpc.so_reuseport", 0),
                # Let clients ping an idle connection every 10 s without being cut off.
                ("grpc.keepalive_permit_without_calls", 1),
                ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
            ],
        )
        add_prediction_service(PredictionService(self._servables, self._executor), server)
        add_model_service(ModelService(self._servables), server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        names = (*_HEALTH_NAMES[1:], health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, server)
        return server

    def _load_warm(self, version_dir: Path) -> Model:
        model = self._load_model(version_dir, 1)
        model.warm_up()
        return model

    async def _set_health(self, status: int) -> None:
        for name in _HEALTH_NAMES:
            await self._health.set(name, status)


@dataclass(frozen=True)
class RunningServer:
    """A server that is SERVING.

    Attributes:
        port: Where it listens.
        server: The server itself.
    """

    port: int
    server: ModelServer

    async def stop(self) -> None:
        """Drain and close."""
        await self.server.stop()


async def start(options: ServerOptions, *, load_model: LoadModel = load_xgboost) -> RunningServer:
    """Start a server in the running event loop and return once it is SERVING.

    Args:
        options: Settings.
        load_model: Loads a version folder; XGBoost by default.

    Raises:
        StartupError: The address cannot be had.
        RepositoryError: The repository has no such model or version.
        ModelError: The model cannot be served.
    """
    server = ModelServer(options, load_model=load_model)
    try:
        port = await server.listen()
        await server.load()
    except BaseException:
        await server.stop()
        raise
    return RunningServer(port=port, server=server)


def serve(
    options: ServerOptions,
    *,
    on_ready: Callable[[int], None] | None = None,
    load_model: LoadModel = load_xgboost,
) -> int:
    """Serve until SIGTERM or SIGINT, then drain. Call it from the main thread.

    Args:
        options: Settings.
        on_ready: Called once with the port when the server is SERVING; not when a signal came
            while it was loading, which it obeys as soon as the model is loaded.
        load_model: Loads a version folder; XGBoost by default.

    Returns:
        Exit code: 0 after a drain, 1 when the server could not start (the log says why).
    """
    return asyncio.run(_serve(options, on_ready, load_model))


async def _serve(
    options: ServerOptions, on_ready: Callable[[int], None] | None, load_model: LoadModel
) -> int:
    stop_asked = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop_asked.set)
    try:
        running = await start(options, load_model=load_model)
    except ModelServerError as exc:
        logger.error("event=start_failed reason=%s message=%s", type(exc).__name__, exc)
        return 1
    if on_ready is not None and not stop_asked.is_set():
        on_ready(running.port)
    await stop_asked.wait()
    await running.stop()
    return 0
