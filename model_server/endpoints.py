"""The servers behind one client: which one the next attempt goes to, and by what channel.

An attempt goes to the endpoint with the fewest of this client's calls open. Of several, each has a
circuit breaker: one that fails several times in a row is left alone for a while, then tried again.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc  # type: ignore[import-untyped, unused-ignore]

from model_server.breaker import BreakerOptions, BreakerState, CircuitBreaker, Permit
from model_server.errors import CircuitOpen, PredictError, Unavailable

__all__ = ["ChannelSecurity", "Endpoint", "Endpoints", "Fate", "RetryBudget"]


@dataclass
class Fate:
    """What became of an attempt that was cancelled.

    Attributes:
        was_slow: A later attempt was answered before it.
    """

    was_slow: bool = False


NO_FATE = Fate()


@dataclass(frozen=True)
class ChannelSecurity:
    """How a client knows its servers, and they it.

    Attributes:
        tls: Whether to use TLS.
        ca: PEM file of who signs servers; the system's if None.
        certificate: PEM file of the client's certificate, for servers that ask for one.
        key: PEM file of its private key.
        server_name: Name that the server's certificate must have, if it is not the address's.
    """

    tls: bool = False
    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    server_name: str = ""

    def __post_init__(self) -> None:
        """Refuse a certificate without its key.

        Raises:
            ValueError: One of both is missing.
        """
        if (self.certificate is None) != (self.key is None):
            raise ValueError("certificate and key belong together")

    def channel(self, target: str, options: list[tuple[str, Any]]) -> Any:
        """Open a channel.

        Raises:
            Unavailable: A file cannot be read.
        """
        if not self.tls:
            return grpc.aio.insecure_channel(target, options=options)
        if self.server_name:
            options = [*options, ("grpc.ssl_target_name_override", self.server_name)]
        try:
            credentials = grpc.ssl_channel_credentials(
                *(path and path.read_bytes() for path in (self.ca, self.key, self.certificate))
            )
        except OSError as exc:
            raise Unavailable(f"cannot read {exc.filename}: {exc.strerror}") from exc
        return grpc.aio.secure_channel(target, credentials, options=options)


class Endpoint:
    """One server.

    Attributes:
        target: Its address, host:port.
        open_calls: This client's calls to it.
    """

    def __init__(self, target: str, breaker: CircuitBreaker) -> None:
        """Start without a channel."""
        self.target = target
        self.open_calls = 0
        self.breaker = breaker
        self.channel: Any = None


class Endpoints:
    """The servers of one client; one event loop at a time owns them."""

    def __init__(
        self,
        targets: Collection[str],
        *,
        breaker: BreakerOptions,
        security: ChannelSecurity,
        channel_options: list[tuple[str, Any]],
        clock: Callable[[], float] = time.monotonic,
        shuffle: Callable[[list[Endpoint]], None] = random.shuffle,
    ) -> None:
        """Open nothing yet.

        Args:
            targets: Addresses, host:port.
            breaker: When to leave one alone, and for how long.
            security: TLS.
            channel_options: gRPC's.
            clock: Monotonic seconds.
            shuffle: Orders those with equally many calls.
        """
        self._endpoints = [Endpoint(t, CircuitBreaker(breaker, clock=clock)) for t in targets]
        self._clock = clock
        self._security = security
        self._channel_options = channel_options
        self._shuffle = shuffle
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False

    def __len__(self) -> int:
        """How many there are."""
        return len(self._endpoints)

    def has_another(self, tried: Collection[Endpoint]) -> bool:
        """Whether there is one where a call has not been and that is not left alone."""
        return any(
            endpoint not in tried and endpoint.breaker.state is not BreakerState.OPEN
            for endpoint in self._endpoints
        )

    @property
    def breaker_state(self) -> BreakerState:
        """The healthiest one's; any thread may read it."""
        return min(endpoint.breaker.state for endpoint in self._endpoints)

    @contextmanager
    def attempt(
        self, ends_at_s: float, tried: Collection[Endpoint] = (), fate: Fate = NO_FATE
    ) -> Iterator[Endpoint]:
        """Choose where an attempt goes, and learn from what it raises.

        To be cancelled counts against the endpoint if the time was over or another was faster.

        Args:
            ends_at_s: The call's deadline by the clock.
            tried: Where this call has been already: taken only if there is no other.
            fate: Says of an attempt that is cancelled whether it was slow.

        Raises:
            CircuitOpen: Every one is left alone.
            Unavailable: The client is closed, or no channel can be opened.
        """
        endpoint, permit = self._choose(tried)
        endpoint.open_calls += 1
        try:
            self._open(endpoint)
            yield endpoint
        except PredictError as exc:
            if permit is not None:
                (permit.fail if exc.counts_as_failure else permit.succeed)()
            raise
        except BaseException:
            if permit is not None:
                slow = fate.was_slow or self._clock() >= ends_at_s
                (permit.fail if slow else permit.abandon)()
            raise
        else:
            if permit is not None:
                permit.succeed()
        finally:
            endpoint.open_calls -= 1

    def _choose(self, tried: Collection[Endpoint]) -> tuple[Endpoint, Permit | None]:
        if len(self._endpoints) == 1:  # then the client's own breaker is enough
            return self._endpoints[0], None
        order = list(self._endpoints)
        self._shuffle(order)
        order.sort(key=lambda endpoint: (endpoint in tried, endpoint.open_calls))
        for endpoint in order:
            with suppress(CircuitOpen):
                return endpoint, endpoint.breaker.acquire()
        raise CircuitOpen("every server is left alone for a while")

    def _open(self, endpoint: Endpoint) -> None:
        if self._closed:
            raise Unavailable("the client is closed")
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            self._loop = loop
            for each in self._endpoints:
                each.channel = None
        if endpoint.channel is None:
            endpoint.channel = self._security.channel(endpoint.target, self._channel_options)

    async def close(self) -> None:
        """Close every channel."""
        self._closed = True
        for endpoint in self._endpoints:
            channel, endpoint.channel = endpoint.channel, None
            if channel is not None:
                await channel.close()


class RetryBudget:
    """Lets retries be a share of the calls: a service that is down is not asked twice as often."""

    _RESERVE = 10.0
    """Retries that are free at the beginning, and the most that can be saved up."""

    def __init__(self, share: float) -> None:
        """Allow ``share`` retries for each call, 0.2 as one for five."""
        self._share = share
        self._left = self._RESERVE

    def called(self) -> None:
        """A call was made."""
        self._left = min(self._left + self._share, self._RESERVE)

    def take(self) -> bool:
        """Whether another retry is allowed; then it is counted."""
        if self._left < 1.0:
            return False
        self._left -= 1.0
        return True
