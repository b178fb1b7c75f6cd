"""What is known of the call at work, for metrics and logs."""

from __future__ import annotations

import contextvars
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import grpc  # type: ignore[import-untyped, unused-ignore]

__all__ = [
    "CallRecord",
    "Observer",
    "Observers",
    "current",
    "observed_rpc",
    "recorded",
    "request_id",
]

_MAX_ID_CHARS = 128
_STATUS_NAMES = {code.value[0]: code.name for code in grpc.StatusCode}


@dataclass(slots=True)
class CallRecord:
    """One call, filled in while it is answered.

    Attributes:
        entrypoint: ``GRPC`` or ``REST``, as TensorFlow Serving calls them.
        call: As ``Predict`` or ``ModelInfer``; over HTTP the last part of the path, as ``predict``.
        request_id: The caller's ``x-request-id``, or one of our own.
        model: Who answers; empty before it is found.
        version: Its version.
        status: gRPC's name of the status; an HTTP status that has none is ``HTTP_405`` or so.
        begun_s: ``time.perf_counter`` at its begin.
    """

    entrypoint: str
    call: str
    request_id: str
    model: str = ""
    version: int = 0
    status: str = "OK"
    begun_s: float = field(default_factory=time.perf_counter)


class Observer(Protocol):
    """Is told of every call."""

    def begun(self, record: CallRecord) -> None:
        """A call begins."""

    def ended(self, record: CallRecord, took_s: float) -> None:
        """It was answered, or its caller is gone."""


class Observers:
    """Several observers as one."""

    def __init__(self, parts: Sequence[Observer]) -> None:
        """Tell each of ``parts``."""
        self._parts = parts

    def begun(self, record: CallRecord) -> None:
        """See ``Observer``."""
        for part in self._parts:
            part.begun(record)

    def ended(self, record: CallRecord, took_s: float) -> None:
        """See ``Observer``."""
        for part in self._parts:
            part.ended(record, took_s)


current: contextvars.ContextVar[CallRecord | None] = contextvars.ContextVar("call", default=None)


def request_id(given: str | None) -> str:
    """Return the caller's id, if it can stand in a log, or one of our own."""
    if given and len(given) <= _MAX_ID_CHARS and given.isprintable():
        return given
    return uuid.uuid4().hex


@contextmanager
def recorded(record: CallRecord, observer: Observer) -> Iterator[CallRecord]:
    """Make a record the current one and tell an observer of it."""
    token = current.set(record)
    observer.begun(record)
    try:
        yield record
    finally:
        observer.ended(record, time.perf_counter() - record.begun_s)
        current.reset(token)


def observed_rpc(
    answer: Callable[[Any, Any], Awaitable[Any]], method: str, observer: Observer
) -> Callable[[Any, Any], Awaitable[Any]]:
    """Return a unary gRPC handler that is observed.

    Args:
        answer: Takes the request and the context.
        method: Full name, as ``/tensorflow.serving.PredictionService/Predict``.
        observer: Is told of its calls.
    """
    call = method.rpartition("/")[2]

    async def observed(request: Any, context: Any) -> Any:
        given = next((v for k, v in context.invocation_metadata() if k == "x-request-id"), None)
        with recorded(CallRecord("GRPC", call, request_id(given)), observer) as record:
            record.status = "CANCELLED"  # whoever is not here at the end is gone
            try:
                response = await answer(request, context)
            except grpc.aio.AbortError:
                record.status = _STATUS_NAMES.get(_code(context), "UNKNOWN")
                raise
            record.status = "OK"
            return response

    return observed


def _code(context: Any) -> Any:
    code = context.code()
    return code.value[0] if isinstance(code, grpc.StatusCode) else code
