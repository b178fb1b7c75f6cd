"""Ports of this machine."""

from __future__ import annotations

import errno
import random
import socket
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from itertools import cycle, repeat
from pathlib import Path

from jobs.kafka_topics import StackError

HOST = "127.0.0.1"
_OUTGOING = Path("/proc/sys/net/ipv4/ip_local_port_range")
# Above the ports that services have by habit: 8081, 9092.
_FIRST = 10_000
_ENOUGH = 1_000


def free_port(*, other_than: int | None = None) -> int:
    """A TCP port that nothing listens on now.

    No two calls of a process get the same one, and no connection that goes out is given it by the
    kernel before its asker listens on it. Where the kernel's range is not known, or begins too
    low, it is one that the kernel chooses, and neither holds.
    """
    for candidate in _candidates():
        port = _bindable(candidate)
        if port not in (None, other_than):
            return port
    raise AssertionError("the candidates do not end")


@cache
def _candidates() -> Iterator[int]:
    """Ports to try, round and round; 0 leaves it to the kernel."""
    try:
        end = int(_OUTGOING.read_text().split()[0])
    except (OSError, ValueError, IndexError):
        end = 0
    if end - _FIRST < _ENOUGH:
        return repeat(0)
    ports = range(_FIRST, end)
    # From anywhere: processes side by side shall not walk through the same ones.
    begin = random.SystemRandom().randrange(len(ports))
    return cycle([*ports[begin:], *ports[:begin]])


def _bindable(port: int) -> int | None:
    with socket.socket() as probe:
        try:
            probe.bind((HOST, port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            return None
        return int(probe.getsockname()[1])


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
