"""Async client of any server that speaks TensorFlow Serving's API or the Open Inference Protocol.

One deadline covers everything a call does: all attempts, the pauses between them, connecting. It is
set on the gRPC call, so the server sees it, and kept by the event loop as well, so that nothing on
this side can outlast it. Every failure is a ``PredictError`` with a ``reason``.

A call is idempotent, so an attempt that found no server is repeated while time remains, elsewhere
at once if there are several servers, else after a pause. Timeouts, refusals and bad answers are not
repeated. With ``hedge_ms`` a second server is asked too if the first is slow.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeVar

import grpc  # type: ignore[import-untyped, unused-ignore]
import numpy as np
import numpy.typing as npt

from model_server.breaker import BreakerOptions, BreakerState, CircuitBreaker
from model_server.client_protocols import Address, ModelMetadata, OpenInference, TfServing
from model_server.endpoints import ChannelSecurity, Endpoint, Endpoints, Fate, RetryBudget
from model_server.errors import (
    BadResponse,
    PredictError,
    Rejected,
    Timeout,
    Unavailable,
    from_status,
)

__all__ = [
    "ClientOptions",
    "PredictClient",
    "Scores",
]

T = TypeVar("T")
Floats = npt.NDArray[np.float64]
Method = Callable[[Any], Any]
"""Makes a call of a channel."""

# Room for what a request holds besides its rows.
_REQUEST_OVERHEAD_BYTES = 1_024


@dataclass(frozen=True)
class ClientOptions:
    """Settings of a PredictClient.

    Attributes:
        target: Address of the server, as ``host:port``; or of several, with commas between.
        protocol: What it speaks: "tfserving", or "oip" for the Open Inference Protocol, as
            MLServer, Triton and KServe do.
        model_name: Model to ask for.
        model_version: Version to ask for; the server's choice when None. A pinned call that is
            answered by another version is a bad response.
        signature_name: Signature that scores.
        input_name: Its input tensor, and that of the explaining signature.
        output_name: Its output tensor.
        explain_signature: Signature that explains.
        contributions_name: Its output tensor.
        deadline_ms: Milliseconds for one call, all attempts together; above 0.
        max_attempts: Attempts for one call; at least 1.
        backoff_ms: Mean pause before the second attempt, in milliseconds; doubles with each
            further one and is spread by half of itself either way.
        breaker: When to stop calling a server for a while.
        retry_budget: Retries for each call, on average; 0.2 is one for five.
        hedge_ms: Milliseconds without an answer after which another server is asked too; 0 for
            never. It doubles the load of slow servers.
        security: TLS.
        token: Bearer token to show; none if empty.
        max_message_bytes: Largest request or response, in bytes.

    Raises:
        ValueError: A setting is out of range.
    """

    target: str
    model_name: str
    model_version: int | None = None
    signature_name: str = "serving_default"
    input_name: str = "inputs"
    output_name: str = "scores"
    explain_signature: str = "explain"
    contributions_name: str = "contributions"
    deadline_ms: float = 200.0
    max_attempts: int = 3
    backoff_ms: float = 10.0
    breaker: BreakerOptions = field(default_factory=BreakerOptions)
    retry_budget: float = 0.2
    hedge_ms: float = 0.0
    security: ChannelSecurity = field(default_factory=ChannelSecurity)
    token: str = field(default="", repr=False)
    protocol: Literal["tfserving", "oip"] = "tfserving"
    max_message_bytes: int = 16 * 1024 * 1024

    def __post_init__(self) -> None:
        """Refuse settings out of range."""
        if not self.target or not self.model_name:
            raise ValueError("target and model_name must not be empty")
        if not self.deadline_ms > 0:
            raise ValueError(f"deadline_ms must be above 0, is {self.deadline_ms}")
        if self.max_attempts < 1:
            raise ValueError(f"max_attempts must be at least 1, is {self.max_attempts}")
        if not self.backoff_ms >= 0:
            raise ValueError(f"backoff_ms must be at least 0, is {self.backoff_ms}")
        if not self.retry_budget >= 0 or not self.hedge_ms >= 0:
            raise ValueError("retry_budget and hedge_ms must be at least 0")
        if self.max_message_bytes <= _REQUEST_OVERHEAD_BYTES:
            raise ValueError(f"max_message_bytes must be above {_REQUEST_OVERHEAD_BYTES}")


@dataclass(frozen=True)
class Scores:
    """The answer for one batch.

    Attributes:
        values: One score in [0, 1] per row, float64 (n,).
        model_name: Model that made them.
        model_version: Its version, as the server reported it.
    """

    values: Floats
    model_name: str
    model_version: int


@dataclass
class _Call(Generic[T]):
    """One call with all its attempts.

    Attributes:
        method: Makes a call of a channel.
        request: What is sent.
        decode: Takes an answer apart, or refuses it.
        ends_at_s: Its deadline by the client's clock.
        tried: Where it has been.
    """

    method: Method
    request: Any
    decode: Callable[[Any], T]
    ends_at_s: float
    tried: set[Endpoint] = field(default_factory=set)


class PredictClient:
    """Client for one model; one event loop at a time owns it.

    Making one opens nothing: the channel is opened by the first call, in that call's event loop.
    """

    def __init__(
        self,
        options: ClientOptions,
        *,
        clock: Callable[[], float] = time.monotonic,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        """Keep the settings.

        Args:
            options: Settings.
            clock: Monotonic clock in seconds.
            uniform: Draws a number between two; spreads the pauses between attempts.
        """
        self._options = options
        self._clock = clock
        self._uniform = uniform
        self._breaker = CircuitBreaker(options.breaker, clock=clock)
        protocol = TfServing if options.protocol == "tfserving" else OpenInference
        self._protocol: TfServing | OpenInference = protocol(
            Address(options.model_name, options.model_version)
        )
        self._endpoints = Endpoints(
            [target.strip() for target in options.target.split(",")],
            breaker=options.breaker,
            security=options.security,
            channel_options=_channel_options(options.max_message_bytes),
            clock=clock,
        )
        self._budget = RetryBudget(options.retry_budget)
        self._metadata = [("authorization", f"Bearer {options.token}")] if options.token else None

    @property
    def options(self) -> ClientOptions:
        """The settings."""
        return self._options

    @property
    def breaker_state(self) -> BreakerState:
        """State of the circuit breaker, a number fit for a gauge; any thread may read it."""
        return self._breaker.state if len(self._endpoints) == 1 else self._endpoints.breaker_state

    async def predict(
        self, rows: npt.NDArray[np.float32], *, deadline_ms: float | None = None
    ) -> Scores:
        """Score a batch.

        Args:
            rows: float32 (n, F); other numbers are cast.
            deadline_ms: What was left of the deadline by others; the options' own when None.

        Returns:
            One score per row, in the rows' order, and the model that made them.

        Raises:
            PredictError: One of its subclasses; ``reason`` says which.
        """
        options, protocol = self._options, self._protocol
        request = self._request(rows, options.signature_name, options.output_name)

        def decode(response: Any) -> Scores:
            values = protocol.output(response, options.output_name)
            name, version = protocol.served_by(response)
            return Scores(_check_scores(values, len(rows)), name, version)

        return await self._call(protocol.predict, request, decode, deadline_ms)

    async def explain(
        self, rows: npt.NDArray[np.float32], *, deadline_ms: float | None = None
    ) -> Floats:
        """Return each feature's contribution to each score.

        Args:
            rows: float32 (n, F); other numbers are cast.
            deadline_ms: What an earlier call has left of its deadline; the options' own when None.

        Returns:
            Contributions in the model's own margin, log-odds for our server; float64 (n, F).

        Raises:
            PredictError: One of its subclasses; ``rejected`` when the server cannot explain.
        """
        options, protocol = self._options, self._protocol
        request = self._request(rows, options.explain_signature, options.contributions_name)

        def decode(response: Any) -> Floats:
            values = protocol.output(response, options.contributions_name)
            protocol.served_by(response)
            return _check_contributions(values, np.shape(rows))

        return await self._call(protocol.predict, request, decode, deadline_ms)

    async def metadata(self) -> ModelMetadata:
        """Ask for the model's version and signatures.

        Raises:
            PredictError: One of its subclasses; ``reason`` says which.
        """
        protocol = self._protocol
        return await self._call(
            protocol.describe, protocol.metadata_request(), protocol.read_metadata
        )

    async def close(self) -> None:
        """Close the channel; calls in flight and later ones are ``unavailable``."""
        await self._endpoints.close()

    def _request(self, rows: npt.NDArray[Any], signature: str, output: str) -> Any:
        """Encode a request.

        Raises:
            Rejected: The rows are no (n, F) numbers or too large to send; nothing was sent.
        """
        array = _as_rows(rows, self._options.max_message_bytes)
        return self._protocol.request(array, self._options.input_name, signature, output)

    async def _call(
        self,
        method: Method,
        request: Any,
        decode: Callable[[Any], T],
        deadline_ms: float | None = None,
    ) -> T:
        """Run a call; of a single server under the breaker, several have one each."""
        deadline_ms = self._options.deadline_ms if deadline_ms is None else deadline_ms
        if len(self._endpoints) > 1:
            return await self._within_deadline(method, request, decode, deadline_ms)
        permit = self._breaker.acquire()
        try:
            result = await self._within_deadline(method, request, decode, deadline_ms)
        except PredictError as exc:
            (permit.fail if exc.counts_as_failure else permit.succeed)()
            raise
        except BaseException:
            permit.abandon()
            raise
        permit.succeed()
        return result

    async def _within_deadline(
        self, method: Method, request: Any, decode: Callable[[Any], T], deadline_ms: float
    ) -> T:
        deadline_s = deadline_ms / 1_000.0
        call = _Call(method, request, decode, self._clock() + deadline_s)
        try:
            async with asyncio.timeout(deadline_s):
                return await self._attempts(call)
        except TimeoutError as exc:
            raise Timeout(f"no answer within {deadline_ms:g} ms") from exc

    async def _attempts(self, call: _Call[T]) -> T:
        self._budget.called()
        for attempt in itertools.count(1):
            try:
                return await self._hedged(call)
            except Unavailable as exc:
                another = self._endpoints.has_another(call.tried)
                pause_s = 0.0 if another else self._pause_s(attempt)
                time_left = self._clock() + pause_s < call.ends_at_s
                allowed = exc.retryable and attempt < self._options.max_attempts and time_left
                if not (allowed and self._budget.take()):
                    raise
            await asyncio.sleep(pause_s)
        raise AssertionError("unreachable")

    def _pause_s(self, attempt: int) -> float:
        mean_ms = self._options.backoff_ms * 2.0 ** (attempt - 1)
        return self._uniform(0.5, 1.5) * mean_ms / 1_000.0

    async def _hedged(self, call: _Call[T]) -> T:
        """Make an attempt, and another one elsewhere if it is slow; the first answer counts."""
        if not self._options.hedge_ms or len(self._endpoints) == 1:
            return await self._attempt(call, Fate())
        fate = Fate()
        first = asyncio.create_task(self._attempt(call, fate))
        tasks = {first}
        try:
            await asyncio.wait(tasks, timeout=self._options.hedge_ms / 1_000.0)
            another = self._endpoints.has_another(call.tried)
            if not first.done() and another and self._budget.take():
                tasks.add(asyncio.create_task(self._attempt(call, Fate())))
            while True:
                done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    if task.exception() is None or not pending:
                        fate.was_slow = first in pending
                        return task.result()
                tasks = pending
        finally:
            for task in tasks:
                task.cancel()

    async def _attempt(self, call: _Call[T], fate: Fate) -> T:
        """Make one gRPC call; the one place where gRPC's errors become ours."""
        left_s = call.ends_at_s - self._clock()
        if left_s <= 0:
            raise Timeout("no time left for another attempt")
        with self._endpoints.attempt(call.ends_at_s, call.tried, fate) as endpoint:
            call.tried.add(endpoint)
            try:
                method = call.method(endpoint.channel)
                response = await method(call.request, timeout=left_s, metadata=self._metadata)
            except grpc.RpcError as exc:
                raise from_status(exc.code().name, exc.details()) from exc
            except (grpc.aio.UsageError, grpc.aio.InternalError, ValueError) as exc:
                raise Unavailable(f"the channel cannot be used: {exc}") from exc
            except asyncio.CancelledError as exc:
                if _being_cancelled():
                    raise
                # gRPC reports a channel closed under a call as a cancellation nobody asked for.
                raise Unavailable("the client was closed during the call") from exc
            return call.decode(_parsed(response))


def _channel_options(max_message_bytes: int) -> list[tuple[str, Any]]:
    return [
        ("grpc.max_send_message_length", max_message_bytes),
        ("grpc.max_receive_message_length", max_message_bytes),
        # gRPC waits 1 s, doubling to 2 min, before it looks for a lost server again; a restarted
        # one must be found within half a second. 100 ms is the least that gRPC takes.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 300),
        # Time for one attempt to connect, 20 s by default.
        ("grpc.min_reconnect_backoff_ms", 1_000),
        # Keepalive also sets TCP_USER_TIMEOUT: a peer that vanished without a word is given up
        # after 2 s of unacknowledged data instead of some 15 min. Pings themselves go out only
        # with a call in flight, for servers cut off clients that ping an idle connection.
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 2_000),
        ("grpc.keepalive_permit_without_calls", 0),
        # Channels of equal options share one connection by default: two clients' would fail
        # together.
        ("grpc.use_local_subchannel_pool", 1),
    ]


def _parsed(response: Any) -> Any:
    """Refuse the None that grpc.aio returns for bytes that are no message.

    Raises:
        BadResponse: They are none.
    """
    if response is None:
        raise BadResponse("the response cannot be parsed")
    return response


def _being_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _as_rows(rows: npt.NDArray[Any], max_message_bytes: int) -> npt.NDArray[np.float32]:
    try:
        array = np.asarray(rows).astype(np.float32, copy=False)
    except (TypeError, ValueError) as exc:
        raise Rejected(f"rows are no numbers: {exc}") from exc
    if array.ndim != 2:
        raise Rejected(f"rows have shape {array.shape}, must be (n, F)")
    if array.nbytes + _REQUEST_OVERHEAD_BYTES > max_message_bytes:
        raise Rejected(f"{array.nbytes} bytes of rows do not fit into {max_message_bytes}")
    return array


def _check_scores(values: Floats, row_count: int) -> Floats:
    if values.shape not in ((row_count,), (row_count, 1)):
        raise BadResponse(f"scores have shape {values.shape} for {row_count} rows")
    # Not-a-number fails every comparison, so it is caught here too.
    if not ((values >= 0.0) & (values <= 1.0)).all():
        raise BadResponse("a score is not a number between 0 and 1")
    return values.reshape(row_count)


def _check_contributions(values: Floats, shape: tuple[int, ...]) -> Floats:
    if values.shape != shape:
        raise BadResponse(f"contributions have shape {values.shape} for rows of {shape}")
    if not np.isfinite(values).all():
        raise BadResponse("a contribution is not a finite number")
    return values
