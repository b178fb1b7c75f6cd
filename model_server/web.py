"""HTTP: what the two REST interfaces share."""

from __future__ import annotations

import base64
import json
import logging
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
from aiohttp import web

from model_server.errors import (
    InvalidRequest,
    InvalidRows,
    RequestRefused,
    StartupError,
    TensorError,
)
from model_server.security import TlsOptions, token_middleware

__all__ = ["HttpServer", "dumps", "json_response", "read_json"]

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
_JSON = "application/json"

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
    return parse_json(await request.read())


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
        return _error(_HTTP_STATUS[exc.status_name], str(exc))
    except (InvalidRows, TensorError) as exc:
        return _error(HTTPStatus.BAD_REQUEST, str(exc))
    except web.HTTPException as exc:
        return _error(exc.status, exc.text or exc.reason)
    except Exception:
        logger.exception("event=call_failed path=%s", request.path)
        return _error(HTTPStatus.INTERNAL_SERVER_ERROR, "internal error, see the server's log")


def _error(status: int, message: str) -> web.Response:
    return json_response({"error": message}, status)


class HttpServer:
    """The REST interfaces on one port, in the event loop that runs everything else."""

    def __init__(
        self,
        routes: list[web.AbstractRouteDef],
        *,
        max_message_bytes: int,
        grace_s: float,
        token: str = "",
    ) -> None:
        """Take the routes; nothing is opened yet.

        Args:
            routes: What is served.
            max_message_bytes: Largest body of a request.
            grace_s: Seconds that calls in flight get when the server stops.
            token: Bearer token that callers must show; none if empty.
        """
        checks = [token_middleware(token)] if token else []
        application = web.Application(
            middlewares=[*checks, _answering], client_max_size=max_message_bytes, logger=logger
        )
        application.add_routes(routes)
        self._runner = web.AppRunner(
            application, access_log=None, handle_signals=False, shutdown_timeout=grace_s
        )

    async def listen(self, host: str, port: int, tls: TlsOptions | None = None) -> int:
        """Open the port and return it.

        Args:
            host: Address to listen on.
            port: Port; 0 takes a free one.
            tls: The server's identity; plain text if None.

        Raises:
            StartupError: The address cannot be had, or a file of ``tls`` not be read.
        """
        context = tls.for_http() if tls else None
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, host, port, ssl_context=context).start()
        except OSError as exc:
            await self._runner.cleanup()
            raise StartupError(f"cannot listen on {host}:{port}: is the port taken?") from exc
        address = self._runner.addresses[0]
        return int(address[1])

    async def stop(self) -> None:
        """Take nothing new, let calls in flight end, and close."""
        await self._runner.cleanup()
