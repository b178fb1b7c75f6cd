"""Ports of this machine."""

from __future__ import annotations

import socket
from contextlib import suppress

from jobs.kafka_topics import StackError

HOST = "127.0.0.1"


def free_port(*, other_than: int | None = None) -> int:
    """A TCP port that nothing listens on now."""
    while True:
        with socket.socket() as probe:
            probe.bind((HOST, 0))
            port = int(probe.getsockname()[1])
        if port != other_than:
            return port


def is_free(port: int) -> bool:
    """Whether a TCP port of the loopback address can be listened on."""
    with socket.socket() as probe:
        # As the broker does: a connection in TIME_WAIT does not count.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with suppress(OSError):
            probe.bind((HOST, port))
            return True
    return False


def port_of(bootstrap: str) -> int:
    """The port of a local broker's host:port.

    Raises:
        StackError: it names another machine, several brokers, or no port.
    """
    host, _, port = bootstrap.rpartition(":")
    if host not in (HOST, "localhost") or not port.isdecimal():
        raise StackError(
            f"kafka.bootstrap_servers is {bootstrap!r}, not a local broker",
            f"set STREAMSCORE_KAFKA={HOST}:9092, or use that cluster's own tools",
        )
    return int(port)
