"""Every exception this package raises on purpose.

::

    ModelServerError
    ├── PredictError            what a caller of PredictClient sees; has ``reason``
    │   ├── Timeout             reason "timeout"
    │   ├── Unavailable         reason "unavailable"
    │   ├── Rejected            reason "rejected"
    │   ├── CircuitOpen         reason "circuit_open"
    │   └── BadResponse         reason "bad_response"
    ├── RepositoryError         a model folder is missing, unreadable or escapes its root
    ├── ModelError              a model file cannot be served
    ├── InvalidRows             rows do not fit the model (also a ValueError)
    ├── TensorError             a TensorProto or array cannot be converted (also a ValueError)
    ├── RequestRefused          the server refuses a request; has a gRPC ``status_name``
    │   ├── ServableNotFound    NOT_FOUND
    │   ├── ServableNotReady    UNAVAILABLE
    │   ├── SignatureNotFound   FAILED_PRECONDITION
    │   ├── InvalidRequest      INVALID_ARGUMENT
    │   ├── LoadFailed          FAILED_PRECONDITION
    │   ├── Overloaded          RESOURCE_EXHAUSTED
    │   ├── DeadlineExceeded    DEADLINE_EXCEEDED
    │   ├── AskedElsewhere      FAILED_PRECONDITION
    │   └── AdminNotAllowed     PERMISSION_DENIED
    └── StartupError            the server cannot start listening

This module imports no gRPC: statuses are looked up by name, so embedded backends stay light.

What the circuit breaker counts: ``timeout``, ``unavailable`` and ``bad_response`` say that the
server is not doing its work. ``rejected`` says that it is up, has read the request and refused
it; stopping all other traffic for that would turn one bad request into an outage, so it counts
as a sign of life. RESOURCE_EXHAUSTED is ``unavailable`` and counts: an overloaded server is the
case where backing off helps most. It is not retried, for a retry is more load.
The one exception is a message above a size limit, which gRPC also calls RESOURCE_EXHAUSTED:
that is the request's fault, hence ``rejected``.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar, Literal

Reason = Literal["timeout", "unavailable", "rejected", "circuit_open", "bad_response"]


class ModelServerError(Exception):
    """Base of every exception of this package."""


class PredictError(ModelServerError):
    """A call did not bring a usable answer.

    Attributes:
        reason: Why, as one of five fixed words; goes into records and metric names.
        counts_as_failure: Whether the circuit breaker counts it against the server.
        retryable: Whether another attempt inside the same deadline may help.
    """

    reason: ClassVar[Reason]
    counts_as_failure: ClassVar[bool] = True

    def __init__(self, message: str, *, retryable: bool = False) -> None:
        """Keep the message and whether a retry may help."""
        super().__init__(message)
        self.retryable = retryable


class Timeout(PredictError):
    """The deadline, which covers all attempts together, ran out."""

    reason: ClassVar[Reason] = "timeout"


class Unavailable(PredictError):
    """No server took the call, or it was too busy to."""

    reason: ClassVar[Reason] = "unavailable"


class Rejected(PredictError):
    """The server, or a check before sending, refused the request itself."""

    reason: ClassVar[Reason] = "rejected"
    counts_as_failure: ClassVar[bool] = False


class CircuitOpen(PredictError):
    """The circuit breaker let no call through; nothing was sent."""

    reason: ClassVar[Reason] = "circuit_open"
    counts_as_failure: ClassVar[bool] = False


class BadResponse(PredictError):
    """The server answered with something that is not a prediction for these rows."""

    reason: ClassVar[Reason] = "bad_response"


class RepositoryError(ModelServerError):
    """A model folder or file is missing, malformed or outside the repository."""


class ModelError(ModelServerError):
    """A model file cannot be loaded or is not of a kind that can be served."""


class InvalidRows(ModelServerError, ValueError):
    """Rows have another rank, width or content than the model takes."""


class TensorError(ModelServerError, ValueError):
    """A TensorProto or array cannot be converted."""


class RequestRefused(ModelServerError):
    """The server refuses a request.

    Attributes:
        status_name: Name of the gRPC status that the caller gets.
    """

    status_name: ClassVar[str]


class ServableNotFound(RequestRefused):
    """No such model or version is served."""

    status_name: ClassVar[str] = "NOT_FOUND"


class ServableNotReady(RequestRefused):
    """The model is known but still loading or warming up."""

    status_name: ClassVar[str] = "UNAVAILABLE"


class SignatureNotFound(RequestRefused):
    """The model has no signature of that name."""

    status_name: ClassVar[str] = "FAILED_PRECONDITION"


class InvalidRequest(RequestRefused):
    """A tensor's name, type or shape, or another field, does not fit the signature."""

    status_name: ClassVar[str] = "INVALID_ARGUMENT"


class LoadFailed(RequestRefused):
    """A model that was asked to be loaded cannot be served."""

    status_name: ClassVar[str] = "FAILED_PRECONDITION"


class Overloaded(RequestRefused):
    """There is more work than the caller's time allows to wait for."""

    status_name: ClassVar[str] = "RESOURCE_EXHAUSTED"


class DeadlineExceeded(RequestRefused):
    """The caller's time ran out before the model was asked."""

    status_name: ClassVar[str] = "DEADLINE_EXCEEDED"


class AskedElsewhere(RequestRefused):
    """The port of admin calls of several workers runs no model."""

    status_name: ClassVar[str] = "FAILED_PRECONDITION"


class AdminNotAllowed(RequestRefused):
    """Such calls are off."""

    status_name: ClassVar[str] = "PERMISSION_DENIED"


class StartupError(ModelServerError):
    """The server could not start listening."""


#: gRPC status name -> exception raised by the client. Complete: a test walks grpc.StatusCode.
ERROR_BY_STATUS: Mapping[str, type[PredictError]] = MappingProxyType(
    {
        "OK": BadResponse,  # an error that claims success
        "CANCELLED": Unavailable,  # by the peer: a stopping server; our own cancel never gets here
        "UNKNOWN": BadResponse,  # a handler raised: it is up but broken
        "INVALID_ARGUMENT": Rejected,
        "DEADLINE_EXCEEDED": Timeout,
        "NOT_FOUND": Rejected,
        "ALREADY_EXISTS": Rejected,
        "PERMISSION_DENIED": Rejected,
        "UNAUTHENTICATED": Rejected,
        "RESOURCE_EXHAUSTED": Unavailable,
        "FAILED_PRECONDITION": Rejected,
        "ABORTED": Unavailable,
        "UNIMPLEMENTED": Rejected,
        "OUT_OF_RANGE": Rejected,
        "INTERNAL": BadResponse,
        "UNAVAILABLE": Unavailable,
        "DATA_LOSS": BadResponse,
    }
)

RETRYABLE_STATUSES = frozenset({"UNAVAILABLE", "CANCELLED", "ABORTED"})

# gRPC's own words on both sides of a call: "Sent message larger than max (…)", "Received …".
_OVERSIZE = "message larger than max"


def from_status(status_name: str, details: str | None) -> PredictError:
    """Translate a gRPC status into this package's exception.

    Args:
        status_name: Name of a ``grpc.StatusCode``; one unknown here becomes BadResponse.
        details: The status message, if any.

    Returns:
        The exception to raise ``from`` the gRPC one.
    """
    message = f"{status_name}: {details or 'no details'}"
    if status_name == "RESOURCE_EXHAUSTED" and _OVERSIZE in (details or ""):
        return Rejected(message)
    error = ERROR_BY_STATUS.get(status_name, BadResponse)
    return error(message, retryable=status_name in RETRYABLE_STATUSES)
