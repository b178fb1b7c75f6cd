"""The gRPC port: every service on it, its limits and who may call."""

from __future__ import annotations

import socket
from typing import Any

import grpc  # type: ignore[import-untyped, unused-ignore]
from grpc_health.v1 import health, health_pb2_grpc  # type: ignore[import-untyped, unused-ignore]
from grpc_reflection.v1alpha import reflection  # type: ignore[import-untyped, unused-ignore]

from model_server.call_record import Observer
from model_server.calls import Caller
from model_server.errors import StartupError
from model_server.grpc_status import Parsing
from model_server.oip.grpc_api import InferenceService
from model_server.oip.inference import Inference
from model_server.oip.messages import INFERENCE_SERVICE, add_inference_service
from model_server.protos import (
    MODEL_SERVICE,
    PREDICTION_SERVICE,
    add_model_service,
    add_prediction_service,
)
from model_server.repository_calls import RepositoryCalls
from model_server.security import TlsOptions, TokenInterceptor
from model_server.servables import Servables
from model_server.servicers import ModelService, PredictionService

__all__ = ["SERVICES", "GrpcServer"]

#: Full names of the services of models.
SERVICES = (PREDICTION_SERVICE, MODEL_SERVICE, INFERENCE_SERVICE)


class GrpcServer:
    """The gRPC services on one port."""

    def __init__(
        self,
        servables: Servables,
        caller: Caller,
        repository: RepositoryCalls,
        health_servicer: Any,
        observer: Observer,
        *,
        max_message_bytes: int,
        max_concurrent_rpcs: int,
        grace_s: float,
        token: str = "",
        shared: bool = False,
    ) -> None:
        """Put the services together; nothing is opened yet.

        Args:
            servables: The models.
            caller: Runs them.
            repository: Loads and unloads them on request.
            health_servicer: Answers health checks.
            observer: Is told of every call.
            max_message_bytes: Largest request or response.
            max_concurrent_rpcs: Calls at work at once; more are refused.
            grace_s: Seconds that calls in flight get when the server stops.
            token: Bearer token that callers must show; none if empty.
            shared: Whether other processes of this server listen on the same port.
        """
        self._grace_s = grace_s
        self._server = grpc.aio.server(
            maximum_concurrent_rpcs=max_concurrent_rpcs,
            interceptors=[TokenInterceptor(token, observer)] if token else None,
            options=[
                ("grpc.max_receive_message_length", max_message_bytes),
                ("grpc.max_send_message_length", max_message_bytes),
                # Two servers on one port would share the calls: refuse a second that is not ours.
                ("grpc.so_reuseport", int(shared)),
                # Let clients ping an idle connection every 10 s without being cut off.
                ("grpc.keepalive_permit_without_calls", 1),
                ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
            ],
        )
        parsing = Parsing(self._server, observer)
        add_prediction_service(PredictionService(servables, caller), parsing)
        add_model_service(ModelService(servables, repository), parsing)
        inference = Inference(servables, caller)
        add_inference_service(InferenceService(inference, repository), parsing)
        health_pb2_grpc.add_HealthServicer_to_server(health_servicer, parsing)
        names = (*SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._server)

    async def listen(self, host: str, port: int, tls: TlsOptions | None = None) -> int:
        """Open the port and return it.

        Args:
            host: Address to listen on.
            port: Port; 0 takes a free one.
            tls: The server's identity; plain text if None.

        Raises:
            StartupError: The address cannot be had, or a file of ``tls`` not be read.
        """
        address = f"{host}:{port}"
        credentials = tls.for_grpc() if tls else None
        try:
            if credentials is None:
                bound = int(self._server.add_insecure_port(address))
            else:
                bound = int(self._server.add_secure_port(address, credentials))
        except RuntimeError as exc:
            raise StartupError(f"cannot listen on {address}: {_why_not(host, port)}") from exc
        await self._server.start()
        return bound

    async def stop(self) -> None:
        """Take nothing new, give calls in flight their time, and close."""
        await self._server.stop(self._grace_s)


def _why_not(host: str, port: int) -> str:
    """Return the system's reason, which gRPC only writes to stderr."""
    try:
        with socket.create_server((host, port)):
            return "gRPC cannot use it"
    except OSError as exc:
        return exc.strerror or str(exc)
