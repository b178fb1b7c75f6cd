"""HTTP: what the two REST interfaces share."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import re
from collections.abc import Awaitable, Callable, Collection
from http import HTTPStatus
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
from aiohttp import web

from model_server import metrics
from model_server.call_record import CallRecord, Observer, recorded
from model_server.errors import (
    InvalidRequest,
    InvalidRows,
    RequestRefused,
    StartupError,
    TensorError,
)
from model_server.security import TlsOptions, token_middleware

__all__ = ["HttpServer", "dumps", "json_response", "metrics_routes", "read_body", "read_json"]

logger = logging.getLogger(__name__)

_HTTP_STATUS = {
    "NOT_FOUND": HTTPStatus.NOT_FOUND,
    "INVALID_ARGUMENT": HTTPStatus.BAD_REQUEST,
    "FAILED_PRECONDITION": HTTPStatus.BAD_REQUEST,
    "PERMISSION_DENIED": HTTPStatus.FORBIDDEN,
    "UNAVAILABLE": HTTPStatus.SERVICE_UNAVAILABLE,
    "RESOURCE_EXHAUSTED": HTTPStatus.TOO_MANY_REQUESTS,
    "DEADLINE_EXCEEDED": HTTPStatus.GATEWAY_TIMEOUT,
}
_STATUS_NAMES = {
    400: "INVALID_ARGUMENT",
    408: "DEADLINE_EXCEEDED",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}
_JSON = "application/json"
_ID_HEADER = "X-Request-Id"
_REASON = "refusal"

_LINGERING_S = 10.0
PATIENCE_S = web.AppKey("patience_s", float)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def _encoded(value: Any) -> Any:
    """Encode what orjson does not know: bytes, in TensorFlow Serving's way."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return {"b64": base64.b64encode(value).decode()}
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} cannot be sent as JSON")


def dumps(document: Any) -> bytes:
    """Return a document as JSON; NumPy arrays become lists, float32 with its own digits."""
    return orjson.dumps(document, default=_encoded, option=orjson.OPT_SERIALIZE_NUMPY)


def finite(values: npt.NDArray[Any]) -> bool:
    """Whether an array holds no NaN and no infinity, which JSON has no numbers for."""
    return values.dtype.kind not in "fc" or bool(np.isfinite(values).all())


def json_response(document: Any, status: int = HTTPStatus.OK) -> web.Response:
    """Answer with a document."""
    return web.Response(body=dumps(document), content_type=_JSON, status=status)


async def read_json(request: web.Request) -> Any:
    """Read a request's body as JSON; NaN and Infinity are taken, as TensorFlow Serving does.

    Raises:
        InvalidRequest: It is none.
    """
    return parse_json(await read_body(request))


async def read_body(request: web.Request) -> bytes:
    """Read a request's body.

    Raises:
        HTTPRequestTimeout: It does not come in time.
    """
    try:
        async with asyncio.timeout(request.app[PATIENCE_S]):
            return await request.read()
    except TimeoutError:
        raise web.HTTPRequestTimeout(text="the request's body did not come in time") from None


def parse_json(body: bytes) -> Any:
    """Parse JSON; NaN and Infinity are taken, as TensorFlow Serving does.

    Raises:
        InvalidRequest: It is none.
    """
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as exc:
        try:
            return json.loads(body)
        except (ValueError, RecursionError):
            raise InvalidRequest(f"JSON Parse error: {exc}") from exc


@web.middleware
async def _answering(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn this package's refusals into HTTP statuses, and anything else into 500."""
    try:
        return await handler(request)
    except RequestRefused as exc:
        status, reason = int(_HTTP_STATUS[exc.status_name]), str(exc)
    except (InvalidRows, TensorError) as exc:
        status, reason = int(HTTPStatus.BAD_REQUEST), str(exc)
    except web.HTTPException as exc:
        status, reason = exc.status, exc.text or exc.reason
    except Exception:
        logger.exception("event=call_failed path=%s", request.path)
        return _error(HTTPStatus.INTERNAL_SERVER_ERROR, "internal error, see the server's log")
    request[_REASON] = reason
    return _error(status, reason)


def _observing(observer: Observer) -> Any:
    """Return a middleware that tells an observer of each call, and the caller of its id."""

    @web.middleware
    async def observe(request: web.Request, handler: Handler) -> web.StreamResponse:
        given = request.headers.get(_ID_HEADER)
        record = CallRecord(
            "REST", _call(request), given, request.headers.items(), status="CANCELLED"
        )
        with recorded(record, observer):
            response = await handler(request)
            record.status = _status_name(response.status)
            record.reason = request.get(_REASON, "")
        response.headers[_ID_HEADER] = record.request_id
        return response

    return observe


def _call(request: web.Request) -> str:
    """Return the last part of the path; one of ours, not of the caller's making."""
    resource = request.match_info.route.resource
    last = "unknown" if resource is None else re.split("[:/]", resource.canonical)[-1]
    return "model" if last.startswith("{") else last


def _status_name(status: int) -> str:
    if status < HTTPStatus.BAD_REQUEST:
        return "OK"
    return _STATUS_NAMES.get(status, f"HTTP_{status}")


def _error(status: int, message: str) -> web.Response:
    return json_response({"error": message}, status)


def metrics_routes(exposed: Callable[[], Awaitable[bytes]]) -> list[web.AbstractRouteDef]:
    """Return the routes that Prometheus asks.

    Args:
        exposed: Gives the metrics in its text format.
    """

    async def answer(_request: web.Request) -> web.Response:
        return web.Response(body=await exposed(), headers={"Content-Type": metrics.CONTENT_TYPE})

    return [web.get(path, answer) for path in metrics.PATHS]


class HttpServer:
    """The REST interfaces on one port, in the event loop that runs everything else."""

    def __init__(
        self,
        routes: list[web.AbstractRouteDef],
        observer: Observer | None = None,
        *,
        max_message_bytes: int,
        grace_s: float,
        timeout_s: float,
        token: str = "",
        open_paths: Collection[str] = ("/v2/health/live", "/v2/health/ready"),
    ) -> None:
        """Take the routes; nothing is opened yet.

        Args:
            routes: What is served.
            observer: Is told of every call.
            max_message_bytes: Largest body of a request.
            grace_s: Seconds that calls in flight get when the server stops.
            timeout_s: Seconds that a connection may take for a request's head, and for its body,
                and may be idle.
            token: Bearer token that callers must show; none if empty.
            open_paths: Where they need none.
        """
        application = web.Application(
            middlewares=[
                *([_observing(observer)] if observer else []),
                *([token_middleware(token, open_paths)] if token else []),
                _answering,
            ],
            client_max_size=max_message_bytes,
            logger=logger,
        )
        application[PATIENCE_S] = timeout_s
        application.add_routes(routes)
        # This is also how long a connection may take until its first request's head is there.
        self._runner = web.AppRunner(
            application,
            access_log=None,
            handle_signals=False,
            shutdown_timeout=grace_s,
            keepalive_timeout=timeout_s,
            # How long the rest of a body is read that its answer did not wait for.
            lingering_time=min(timeout_s, _LINGERING_S),
        )

    async def listen(
        self, host: str, port: int, tls: TlsOptions | None = None, *, shared: bool = False
    ) -> int:
        """Open the port and return it.

        Args:
            host: Address to listen on.
            port: Port; 0 takes a free one.
            tls: The server's identity; plain text if None.
            shared: Whether other processes of this server listen there too.

        Raises:
            StartupError: The address cannot be had, or a file of ``tls`` not be read.
        """
        context = tls.for_http() if tls else None
        await self._runner.setup()
        try:
            await web.TCPSite(
                self._runner, host, port, ssl_context=context, reuse_port=shared or None
            ).start()
        except OSError as exc:
            await self._runner.cleanup()
            raise StartupError(f"cannot listen on {host}:{port}: {exc.strerror}") from exc
        address = self._runner.addresses[0]
        return int(address[1])

    async def stop(self) -> None:
        """Take nothing new, let calls in flight end, and close."""
        await self._runner.cleanup()
