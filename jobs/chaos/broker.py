"""A local broker with a second way in, which leads over a link that can be hurt."""

from __future__ import annotations

from pathlib import Path

from jobs.stack import HOST, KafkaBroker, free_port

_SECOND = "LINK"


class LinkedBroker(KafkaBroker):
    """A broker that clients reach directly, or by a proxy that it tells them of.

    Args:
        folder: See ``KafkaBroker``.

    Attributes:
        link_port: Where the proxy's bytes go.
        proxy_port: Where the proxy listens.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, port=free_port())
        self.link_port = free_port(other_than=self._port)
        self.proxy_port = free_port(other_than=self.link_port)

    def _server_properties(self, port: int) -> str:
        lines = dict(line.split("=", 1) for line in super()._server_properties(port).splitlines())
        lines["listeners"] = f"{_SECOND}://{HOST}:{self.link_port},{lines['listeners']}"
        told = lines["advertised.listeners"]
        lines["advertised.listeners"] = f"{_SECOND}://{HOST}:{self.proxy_port},{told}"
        lines["listener.security.protocol.map"] += f",{_SECOND}:PLAINTEXT"
        return "".join(f"{name}={value}\n" for name, value in lines.items())
