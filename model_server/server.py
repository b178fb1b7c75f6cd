"""The server process: listen, load, warm up, serve, drain.

Health says NOT_SERVING from the first moment of listening until every model is warm, then SERVING,
and NOT_SERVING again from the first moment of a drain. Calls in flight get ``grace_s`` to end.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import signal
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from grpc_health.v1 import health, health_pb2  # type: ignore[import-untyped, unused-ignore]

from model_server.backends import load as load_by_files
from model_server.call_record import Observers
from model_server.calls import Caller
from model_server.errors import ModelServerError
from model_server.grpc_listener import SERVICES, GrpcServer
from model_server.lifecycle import LoadModel, Manager
from model_server.logs import CallLog
from model_server.metrics import ServerMetrics
from model_server.oip.inference import Inference
from model_server.options import Ports, ServerOptions
from model_server.repository_calls import RepositoryCalls
from model_server.servables import Servables
from model_server.tracing import start_tracing

if TYPE_CHECKING:
    from model_server.web import HttpServer

__all__ = ["ModelServer", "Ports", "RunningServer", "ServerOptions", "serve", "start"]

logger = logging.getLogger(__name__)

# "" is the server as a whole, which plain probes ask for.
_HEALTH_NAMES = ("", *SERVICES)


class ModelServer:
    """A server in three steps: ``listen``, ``load``, ``stop``. One event loop owns it."""

    def __init__(self, options: ServerOptions, *, load_model: LoadModel | None = None) -> None:
        """Keep the settings; nothing is opened yet.

        Args:
            options: Settings.
            load_model: Takes a version folder and the threads per call; may block. By the files in
                the folder if not given.

        Raises:
            StartupError: Tracing is asked for and not installed.
        """
        self._options = options
        self._servables = Servables()
        for config in options.models:
            self._servables.declare(config.name, config.labels)
        self._metrics = ServerMetrics(self._servables)
        self._tracing = (
            start_tracing(options.tracing_endpoint) if options.tracing_endpoint else None
        )
        self._observer = Observers(
            [
                self._metrics,
                *([CallLog()] if options.log_calls else []),
                *([self._tracing] if self._tracing else []),
            ]
        )
        self._manager = Manager(
            self._servables,
            load_model or partial(load_by_files, python=options.model_python),
            on_loaded=self._metrics.loaded,
            on_refused=self._metrics.refused,
        )
        self._polling: asyncio.Task[None] | None = None
        self._health = health.aio.HealthServicer()
        self._executor = ThreadPoolExecutor(options.threads, thread_name_prefix="predict")
        self._caller = Caller(
            self._executor,
            threads=options.threads,
            max_queued=options.max_concurrent_rpcs,
            on_run=self._metrics.ran,
        )
        self._metrics.watch_queue(lambda: self._caller.queued)
        # One for all admin ports: what a reload makes known on one is known on the other.
        self._admin_calls = RepositoryCalls(self._manager, options.models, allowed=True)
        self._common_calls = RepositoryCalls(self._manager, options.models, allowed=False)
        self._listeners: list[GrpcServer | HttpServer] = []
        self._listening = asyncio.Event()

    async def listen(self) -> Ports:
        """Open the ports; every model is still NOT_SERVING.

        Raises:
            StartupError: An address cannot be had, or a file of the identity not be read.
        """
        await self._set_health(health_pb2.HealthCheckResponse.NOT_SERVING)
        options = self._options
        ports = Ports(
            await self._listen_grpc(options.port, admin=False),
            await self._listen_http(options.http_port, admin=False),
            None
            if options.admin_port is None
            else await self._listen_grpc(options.admin_port, admin=True),
            await self._listen_http(options.admin_http_port, admin=True),
            await self._listen_metrics(),
        )
        opened = ports.opened()
        fields = "".join(f" {name}=%d" for name in opened)
        logger.info(f"event=listening host=%s{fields}", options.host, *opened.values())
        self._listening.set()
        return ports

    def _repository_calls(self, admin: bool) -> RepositoryCalls:
        return self._admin_calls if admin else self._common_calls

    async def _listen_grpc(self, port: int, *, admin: bool) -> int:
        options = self._options
        listener = GrpcServer(
            self._servables,
            self._caller,
            self._repository_calls(admin),
            self._health,
            self._observer,
            max_message_bytes=options.max_message_bytes,
            max_concurrent_rpcs=options.max_concurrent_rpcs,
            grace_s=options.grace_s,
            token=options.token,
        )
        bound = await listener.listen(options.host, port, options.tls)
        self._listeners.append(listener)
        return bound

    async def _listen_http(self, port: int | None, *, admin: bool) -> int | None:
        if port is None:
            return None
        # Here, for a server without HTTP starts faster and stays smaller; and in a thread, for it
        # takes a quarter of a second in which models can be loaded.
        await asyncio.to_thread(importlib.import_module, "model_server.web")
        from model_server.oip.http_api import InferenceRoutes
        from model_server.rest import ServingRoutes
        from model_server.web import HttpServer, metrics_routes

        options = self._options
        inference = Inference(self._servables, self._caller)
        routes = [
            *ServingRoutes(self._servables, self._caller).routes(),
            *InferenceRoutes(inference, self._repository_calls(admin)).routes(),
            *metrics_routes(self._metrics.exposed),
        ]
        listener = HttpServer(
            routes,
            self._observer,
            max_message_bytes=options.max_message_bytes,
            grace_s=options.grace_s,
            timeout_s=options.http_timeout_s,
            token=options.token,
        )
        bound = await listener.listen(options.host, port, options.tls)
        self._listeners.append(listener)
        return bound

    async def _listen_metrics(self) -> int | None:
        options = self._options
        if options.metrics_port is None:
            return None
        await asyncio.to_thread(importlib.import_module, "model_server.web")
        from model_server.web import HttpServer, metrics_routes

        listener = HttpServer(
            metrics_routes(self._metrics.exposed),
            max_message_bytes=0,
            grace_s=options.grace_s,
            timeout_s=options.http_timeout_s,
        )
        bound = await listener.listen(options.host, options.metrics_port)
        self._listeners.append(listener)
        return bound

    async def load(self) -> None:
        """Load and warm up every model, then say SERVING and look for new versions.

        May begin before ``listen`` does, but does not end before that has ended.

        Raises:
            RepositoryError: The repository has no such model or version.
            ModelError: A model cannot be served.
        """
        await self._manager.configure(self._options.models)
        await self._listening.wait()
        await self._set_health(health_pb2.HealthCheckResponse.SERVING)
        if self._options.poll_s:
            self._polling = asyncio.create_task(self._manager.poll_forever(self._options.poll_s))
        logger.info("event=serving models=%s", ",".join(self._servables.names))

    async def stop(self) -> None:
        """Refuse new calls, give those in flight ``grace_s``, then close. May be called twice."""
        logger.info("event=draining grace_s=%.1f", self._options.grace_s)
        if self._polling is not None:
            self._polling.cancel()
        self._servables.retire()
        if (remote := sys.modules.get("model_server.backends.remote")) is not None:
            remote.end_loads()
        await self._health.enter_graceful_shutdown()
        async with asyncio.TaskGroup() as stopping:
            for listener in self._listeners:
                stopping.create_task(listener.stop())
        self._executor.shutdown(wait=False, cancel_futures=True)
        await self._servables.close()
        if self._tracing is not None:
            await asyncio.to_thread(self._tracing.close)
        logger.info("event=stopped")

    async def _set_health(self, status: int) -> None:
        for name in _HEALTH_NAMES:
            await self._health.set(name, status)


@dataclass(frozen=True)
class RunningServer:
    """A server that is SERVING.

    Attributes:
        ports: Where it listens.
        server: The server itself.
    """

    ports: Ports
    server: ModelServer

    @property
    def port(self) -> int:
        """Where it listens for gRPC."""
        return self.ports.grpc

    async def stop(self) -> None:
        """Drain and close."""
        await self.server.stop()


async def start(options: ServerOptions, *, load_model: LoadModel | None = None) -> RunningServer:
    """Start a server in the running event loop and return once it is SERVING.

    Args:
        options: Settings.
        load_model: Loads a version folder; by the files in it if not given.

    Raises:
        StartupError: The address cannot be had.
        RepositoryError: The repository has no such model or version.
        ModelError: The model cannot be served.
    """
    server = ModelServer(options, load_model=load_model)
    loading = asyncio.create_task(server.load())  # mostly another process's work
    try:
        ports = await server.listen()
        await loading
    except BaseException:
        loading.cancel()
        await asyncio.gather(loading, return_exceptions=True)
        await server.stop()
        raise
    return RunningServer(ports, server)


def serve(
    options: ServerOptions,
    *,
    on_ready: Callable[[Ports], None] | None = None,
    load_model: LoadModel | None = None,
) -> int:
    """Serve until SIGTERM or SIGINT, then drain. Call it from the main thread.

    Args:
        options: Settings.
        on_ready: Called once with the ports when the server is SERVING.
        load_model: Loads a version folder; by the files in it if not given.

    Returns:
        Exit code: 0 after a drain, 1 when the server could not start (the log says why).
    """
    return asyncio.run(_serve(options, on_ready, load_model))


async def _serve(
    options: ServerOptions, on_ready: Callable[[Ports], None] | None, load_model: LoadModel | None
) -> int:
    stop_asked = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop_asked.set)
    starting = asyncio.create_task(start(options, load_model=load_model))
    stopping = asyncio.create_task(stop_asked.wait())
    await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
    if not starting.done():
        starting.cancel()
    try:
        running = await starting
    except ModelServerError as exc:
        logger.error("event=start_failed reason=%s message=%s", type(exc).__name__, exc)
        return 1
    except asyncio.CancelledError:  # a signal came while it was loading
        return 0
    if on_ready is not None and not stop_asked.is_set():
        on_ready(running.ports)
    await stopping
    await running.stop()
    return 0
