"""This package's refusals as gRPC statuses."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from functools import wraps
from typing import Any, TypeVar

import grpc  # type: ignore[import-untyped, unused-ignore]

from model_server.errors import InvalidRows, RequestRefused, TensorError

__all__ = ["answering"]

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
