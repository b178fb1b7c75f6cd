"""What is known of the call at work, for metrics and logs."""

from __future__ import annotations

import contextvars
import re
import time
import uuid
from collections.abc import Awaitable, Callable, Iterable, Sequence
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
]

_GIVEN_ID = re.compile(r"[\w.:/+=@|-]{1,128}", re.ASCII)
"""No spaces or quotes, or a caller could write fields of its own into our log."""
_STATUS_NAMES = {code.value[0]: code.name for code in grpc.StatusCode}


@dataclass(slots=True)
class CallRecord:
    """One call, filled in while it is answered.

    Attributes:
        entrypoint: ``GRPC`` or ``REST``, as TensorFlow Serving calls them.
        call: As ``Predict`` or ``ModelInfer``; over HTTP the last part of the path, as ``predict``.
        given_id: The caller's ``x-request-id``, if it gave one; see ``request_id``.
        metadata: The call's, or its headers.
        model: Who answers; empty before it is found.
        version: Its version.
        status: gRPC's name of the status; an HTTP status that has none is ``HTTP_405`` or so.
        reason: What the caller was told of a refusal.
        begun_s: ``time.perf_counter`` at its begin.
    """

    entrypoint: str
    call: str
    given_id: str | None = None
    metadata: Iterable[tuple[str, Any]] = ()
    model: str = ""
    version: int = 0
    status: str = "OK"
    reason: str = ""
    begun_s: float = field(default_factory=time.perf_counter)
    _made_id: str = ""

    @property
    def request_id(self) -> str:
        """The caller's id, if it can stand in a log, or else one of our own."""
        given = self.given_id
        if given and _GIVEN_ID.fullmatch(given):
            return given
        if not self._made_id:  # only now: most calls are never logged
            self._made_id = uuid.uuid4().hex
        return self._made_id


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


class recorded:
    """Makes a record the current one and tells an observer of it."""

    def __init__(self, record: CallRecord, observer: Observer) -> None:
        """Begin with ``with``."""
        self._record = record
        self._observer = observer

    def __enter__(self) -> CallRecord:
        self._token = current.set(self._record)
        self._observer.begun(self._record)
        return self._record

    def __exit__(self, *_: object) -> None:
        self._observer.ended(self._record, time.perf_counter() - self._record.begun_s)
        current.reset(self._token)


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
        metadata = context.invocation_metadata()
        given = next((value for key, value in metadata if key == "x-request-id"), None)
        with recorded(CallRecord("GRPC", call, given, metadata), observer) as record:
            if given is not None:
                context.set_trailing_metadata((("x-request-id", record.request_id),))
            record.status = "CANCELLED"  # whoever is not here at the end is gone
            try:
                response = await answer(request, context)
            except grpc.aio.AbortError:
                record.status = _STATUS_NAMES.get(_code(context), "UNKNOWN")
                record.reason = _text(context.details())
                raise
            record.status = "OK"
            return response

    return observed


def _text(details: Any) -> str:
    return details.decode(errors="replace") if isinstance(details, bytes) else str(details or "")


def _code(context: Any) -> Any:
    code = context.code()
    return code.value[0] if isinstance(code, grpc.StatusCode) else code
