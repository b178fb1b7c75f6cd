"""What a program that has started a server holds: where it listens, and how it is stopped."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from model_server.options import Ports


class Stoppable(Protocol):
    """A server, or several."""

    async def stop(self) -> None:
        """Drain and close."""


@dataclass(frozen=True)
class RunningServer:
    """A server that is SERVING.

    Attributes:
        ports: Where it listens.
        server: The server itself.
    """

    ports: Ports
    server: Stoppable

    @property
    def port(self) -> int:
        """Where it listens for gRPC."""
        return self.ports.grpc

    async def stop(self) -> None:
        """Drain and close."""
        await self.server.stop()
