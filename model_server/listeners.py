"""The ports of a server and what each of them answers."""

from __future__ import annotations

import asyncio
import importlib
import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from grpc_health.v1 import health, health_pb2  # type: ignore[import-untyped, unused-ignore]

from model_server.call_record import Observer
from model_server.calls import Caller
from model_server.grpc_listener import SERVICES, GrpcServer
from model_server.oip.inference import Inference
from model_server.options import Ports, ServerOptions
from model_server.repository_calls import Changes, RepositoryCalls
from model_server.servables import Servables

if TYPE_CHECKING:
    from model_server.web import HttpServer

__all__ = ["Listeners"]

logger = logging.getLogger(__name__)

# "" is the server as a whole, which plain probes ask for.
_HEALTH_NAMES = ("", *SERVICES)


class Listeners:
    """Every port of the settings; one event loop owns them."""

    def __init__(
        self,
        options: ServerOptions,
        servables: Servables,
        caller: Caller,
        changes: Changes,
        observer: Observer,
        exposed: Callable[[], Awaitable[bytes]],
    ) -> None:
        """Open nothing yet.

        Args:
            options: Which ports, and for whom.
            servables: The models.
            caller: Runs them.
            changes: Loads and unloads them for who may ask for it.
            observer: Is told of every call.
            exposed: Gives the metrics in Prometheus's text format.
        """
        self._options = options
        self._servables = servables
        self._caller = caller
        # One for all admin ports: what a reload makes known on one is known on the other.
        self._calls = {
            allowed: RepositoryCalls(changes, options.models, allowed=allowed)
            for allowed in (True, False)
        }
        self._observer = observer
        self._exposed = exposed
        self._health = health.aio.HealthServicer()
        self._open: list[GrpcServer | HttpServer] = []

    async def set_serving(self, serving: bool) -> None:
        """Say SERVING or NOT_SERVING to who asks for gRPC's health."""
        states = health_pb2.HealthCheckResponse
        for name in _HEALTH_NAMES:
            await self._health.set(name, states.SERVING if serving else states.NOT_SERVING)

    async def open(self) -> Ports:
        """Open every port; health says NOT_SERVING.

        Raises:
            StartupError: An address cannot be had, or a file of the identity not be read.
        """
        await self.set_serving(False)
        options = self._options
        ports = Ports(
            await self._grpc(options.port, admin=False),
            await self._http(options.http_port, admin=False),
            *await self.open_admin(),
        )
        opened = ports.opened()
        fields = "".join(f" {name}=%d" for name in opened)
        logger.info(f"event=listening host=%s{fields}", options.host, *opened.values())
        return ports

    async def open_admin(self) -> tuple[int | None, int | None, int | None]:
        """Open the ports of admin calls by gRPC and HTTP, and of metrics, and return them.

        Raises:
            StartupError: An address cannot be had, or a file of the identity not be read.
        """
        options = self._options
        return (
            None
            if options.admin_port is None
            else await self._grpc(options.admin_port, admin=True),
            await self._http(options.admin_http_port, admin=True),
            await self._metrics(),
        )

    async def stop(self) -> None:
        """Say NOT_SERVING, take nothing new, give calls in flight their time, and close."""
        await self._health.enter_graceful_shutdown()
        async with asyncio.TaskGroup() as stopping:
            for listener in self._open:
                stopping.create_task(listener.stop())

    async def _grpc(self, port: int, *, admin: bool) -> int:
        options = self._options
        listener = GrpcServer(
            self._servables,
            self._caller,
            self._calls[admin],
            self._health,
            self._observer,
            max_message_bytes=options.max_message_bytes,
            max_concurrent_rpcs=options.max_concurrent_rpcs,
            grace_s=options.grace_s,
            token=options.token,
            shared=options.workers > 1 and not admin,
        )
        bound = await listener.listen(options.host, port, options.tls)
        self._open.append(listener)
        return bound

    async def _http(self, port: int | None, *, admin: bool) -> int | None:
        if port is None:
            return None
        # Here, for a server without HTTP starts faster and stays smaller; and in a thread, for it
        # takes a quarter of a second in which models can be loaded.
        await asyncio.to_thread(importlib.import_module, "model_server.web")
        from model_server.oip.http_api import InferenceRoutes
        from model_server.rest import ServingRoutes
        from model_server.web import HttpServer, metrics_routes

        options = self._options
        shared = options.workers > 1 and not admin
        inference = Inference(self._servables, self._caller)
        routes = [
            *ServingRoutes(self._servables, self._caller).routes(),
            *InferenceRoutes(inference, self._calls[admin]).routes(),
            # Of several processes on one port nobody knows whose counts these would be.
            *([] if shared else metrics_routes(self._exposed)),
        ]
        listener = HttpServer(
            routes,
            self._observer,
            max_message_bytes=options.max_message_bytes,
            grace_s=options.grace_s,
            timeout_s=options.http_timeout_s,
            token=options.token,
        )
        bound = await listener.listen(options.host, port, options.tls, shared=shared)
        self._open.append(listener)
        return bound

    async def _metrics(self) -> int | None:
        options = self._options
        if options.metrics_port is None:
            return None
        await asyncio.to_thread(importlib.import_module, "model_server.web")
        from model_server.web import HttpServer, metrics_routes

        listener = HttpServer(
            metrics_routes(self._exposed),
            max_message_bytes=0,
            grace_s=options.grace_s,
            timeout_s=options.http_timeout_s,
        )
        bound = await listener.listen(options.host, options.metrics_port)
        self._open.append(listener)
        return bound
