"""Who may call: TLS, client certificates, and a bearer token."""

from __future__ import annotations

import hmac
import ssl
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc  # type: ignore[import-untyped, unused-ignore]

from model_server.call_record import Observer, observed_rpc
from model_server.errors import StartupError

if TYPE_CHECKING:
    from aiohttp import web

__all__ = ["TlsOptions", "TokenInterceptor", "token_middleware"]

_OPEN_METHODS = (
    "/grpc.health.v1.Health/",
    "/inference.GRPCInferenceService/ServerLive",
    "/inference.GRPCInferenceService/ServerReady",
)
_SCHEME = "Bearer "


@dataclass(frozen=True)
class TlsOptions:
    """Files of a server's identity, in PEM.

    Attributes:
        certificate: The server's certificate and those it was signed by.
        key: Its private key.
        client_ca: Who signs clients' certificates; if given, a client must show one.
    """

    certificate: Path
    key: Path
    client_ca: Path | None = None

    def for_grpc(self) -> Any:
        """Return what a gRPC server takes.

        Raises:
            StartupError: A file cannot be read.
        """
        try:
            client_ca = self.client_ca.read_bytes() if self.client_ca else None
            pair = self.key.read_bytes(), self.certificate.read_bytes()
        except OSError as exc:
            raise StartupError(f"cannot read {exc.filename}: {exc.strerror}") from exc
        return grpc.ssl_server_credentials(
            [pair], root_certificates=client_ca, require_client_auth=client_ca is not None
        )

    def for_http(self) -> ssl.SSLContext:
        """Return what an HTTP server takes.

        Raises:
            StartupError: A file cannot be read or is not PEM.
        """
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            context.load_cert_chain(self.certificate, self.key)
            if self.client_ca:
                context.load_verify_locations(self.client_ca)
                context.verify_mode = ssl.CERT_REQUIRED
        except OSError as exc:  # ssl.SSLError is one
            raise StartupError(f"cannot use {self.certificate} and {self.key}: {exc}") from exc
        return context


def _is_right(header: str, token: str) -> bool:
    given = header.removeprefix(_SCHEME).encode(errors="surrogateescape")
    return header.startswith(_SCHEME) and hmac.compare_digest(given, token.encode())


class TokenInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[misc, unused-ignore]
    """Refuses gRPC calls without the token; health checks need none."""

    def __init__(self, token: str, observer: Observer) -> None:
        """Ask for ``token``; ``observer`` is told of refusals."""
        self._token = token
        self._observer = observer

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[Any]], handler_call_details: Any
    ) -> Any:
        """Let a call through or refuse it."""
        given = dict(handler_call_details.invocation_metadata).get("authorization", "")
        handler = await continuation(handler_call_details)
        if handler_call_details.method.startswith(_OPEN_METHODS) or _is_right(given, self._token):
            return handler
        if handler is not None and handler.stream_stream:
            return grpc.stream_stream_rpc_method_handler(_refuse)
        # Whoever has no token shall not choose names that end up in metrics.
        method = handler_call_details.method if handler is not None else "unknown"
        refuse = observed_rpc(_refuse, method, self._observer)
        return grpc.unary_unary_rpc_method_handler(refuse)


async def _refuse(request: Any, context: Any) -> None:
    await context.abort(grpc.StatusCode.UNAUTHENTICATED, "bearer token missing or wrong")


def token_middleware(token: str, open_paths: Collection[str]) -> Any:
    """Return an aiohttp middleware that refuses requests without the token, but for some paths."""
    from aiohttp import web

    @web.middleware
    async def check(
        request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        header = request.headers.get("Authorization", "")
        if request.path in open_paths or _is_right(header, token):
            return await handler(request)
        return web.json_response(
            {"error": "bearer token missing or wrong"},
            status=HTTPStatus.UNAUTHORIZED,
            headers={"WWW-Authenticate": "Bearer"},
        )

    return check
