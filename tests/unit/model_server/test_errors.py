"""The exception tree, and the one place where gRPC statuses enter it."""

from __future__ import annotations

import grpc
import pytest

from model_server import errors
from model_server.errors import ERROR_BY_STATUS, PredictError, from_status


def test_every_grpc_status_is_mapped() -> None:
    assert set(ERROR_BY_STATUS) == {code.name for code in grpc.StatusCode}


def test_reasons_are_exactly_these() -> None:
    assert {error.reason for error in PredictError.__subclasses__()} == {
        "timeout",
        "unavailable",
        "rejected",
        "circuit_open",
        "bad_response",
    }


def test_every_exception_is_drawn_in_the_tree() -> None:
    public = [item for item in vars(errors).values() if isinstance(item, type)]
    names = {item.__name__ for item in public if issubclass(item, Exception)}
    drawing = (errors.__doc__ or "").split("This module")[0]
    assert all(name in drawing for name in names)


@pytest.mark.parametrize(
    ("error", "counts"),
    [
        (errors.Timeout, True),
        (errors.Unavailable, True),
        (errors.BadResponse, True),
        (errors.Rejected, False),
        (errors.CircuitOpen, False),
    ],
)
def test_what_the_breaker_counts(error: type[PredictError], counts: bool) -> None:
    assert error.counts_as_failure is counts


@pytest.mark.parametrize("status", sorted(ERROR_BY_STATUS))
def test_only_an_absent_server_is_worth_another_attempt(status: str) -> None:
    error = from_status(status, "why")
    assert type(error) is ERROR_BY_STATUS[status]
    assert error.retryable is (status in {"UNAVAILABLE", "CANCELLED", "ABORTED"})
    assert str(error) == f"{status}: why"


def test_oversize_is_the_requests_fault_overload_the_servers() -> None:
    oversize = "SERVER: Received message larger than max (20 vs. 10)"
    assert from_status("RESOURCE_EXHAUSTED", oversize).reason == "rejected"
    assert from_status("RESOURCE_EXHAUSTED", "Concurrent RPC limit").reason == "unavailable"


def test_unknown_status_is_a_bad_response() -> None:
    assert from_status("BRAND_NEW", None).reason == "bad_response"


@pytest.mark.parametrize(
    "error", [item for item in errors.RequestRefused.__subclasses__()], ids=lambda e: e.__name__
)
def test_refusals_name_a_real_status(error: type[errors.RequestRefused]) -> None:
    assert error.status_name in {code.name for code in grpc.StatusCode}
