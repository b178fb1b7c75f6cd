"""This package's refusals, and bytes that are no message, as gRPC statuses."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable
from functools import wraps
from typing import Any, TypeVar

import grpc  # type: ignore[import-untyped, unused-ignore]

from model_server.call_record import Observer, observed_rpc
from model_server.errors import InvalidRows, RequestRefused, TensorError

__all__ = ["Parsing", "answering"]

logger = logging.getLogger(__name__)

_Servicer = TypeVar("_Servicer")
_Handler = Callable[[_Servicer, Any, Any], Awaitable[Any]]


def answering(handler: _Handler[_Servicer]) -> _Handler[_Servicer]:
    """Let a unary handler raise: a refusal becomes its status, anything else INTERNAL."""

    @wraps(handler)
    async def answer(self: _Servicer, request: Any, context: Any) -> Any:
        try:
            return await handler(self, request, context)
        except RequestRefused as exc:
            await context.abort(grpc.StatusCode[exc.status_name], str(exc))
        except (InvalidRows, TensorError) as exc:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(exc))
        except Exception:
            logger.exception("event=call_failed method=%s", handler.__name__)
            await context.abort(grpc.StatusCode.INTERNAL, "internal error, see the server's log")

    return answer


class _Unparsable:
    """Stands for a request that is no message of its type."""


_UNPARSABLE = _Unparsable()


class Parsing:
    """Takes the place of a server where services are added, and sees to requests that are none.

    Here every call passes, so here it is observed too.

    grpc.aio answers bytes that cannot be parsed with UNKNOWN, as if a handler had failed; they are
    the caller's fault, hence INVALID_ARGUMENT.
    """

    def __init__(self, server: Any, observer: Observer) -> None:
        """Add services to ``server``; ``observer`` is told of their calls."""
        self._server = server
        self._observer = observer

    def add_generic_rpc_handlers(self, handlers: Iterable[Any]) -> None:
        """See ``grpc.aio.Server``."""
        self._server.add_generic_rpc_handlers(
            tuple(_Handlers(handler, self._observer) for handler in handlers)
        )

    def add_registered_method_handlers(self, service_name: str, handlers: Any) -> None:
        """See ``grpc.aio.Server``, where it does nothing either."""


class _Handlers(grpc.GenericRpcHandler):  # type: ignore[misc, unused-ignore]
    """A service's handlers, each of which is made to take bytes that are no message."""

    def __init__(self, handlers: Any, observer: Observer) -> None:
        self._handlers = handlers
        self._observer = observer
        self._made: dict[str, Any] = {}

    def service(self, handler_call_details: Any) -> Any:
        method = handler_call_details.method
        if method not in self._made:
            handler = self._handlers.service(handler_call_details)
            if handler is None:  # not of this service; names of others are not kept
                return None
            self._made[method] = _tolerant(handler, method, self._observer)
        return self._made[method]


def _tolerant(handler: Any, method: str, observer: Observer) -> Any:
    if handler.unary_unary is None or handler.request_deserializer is None:
        return handler

    def parse(data: bytes) -> Any:
        try:
            return handler.request_deserializer(data)
        except Exception:  # DecodeError, and what strings that are no UTF-8 raise
            return _UNPARSABLE

    async def answer(request: Any, context: Any) -> Any:
        if request is _UNPARSABLE:
            await context.abort(
                grpc.StatusCode.INVALID_ARGUMENT, "the request is no message of this call"
            )
        return await handler.unary_unary(request, context)

    return grpc.unary_unary_rpc_method_handler(
        observed_rpc(answer, method, observer), parse, handler.response_serializer
    )
