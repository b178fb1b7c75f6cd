"""Connections that processes of this machine have open."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress

import psutil


def connections_to(port: int, processes: Iterable[psutil.Process] | None = None) -> int:
    """How many connections to a port are open: of some processes, or of this one."""
    found = 0
    for process in processes if processes is not None else [psutil.Process()]:
        with suppress(psutil.NoSuchProcess):
            for one in process.net_connections("tcp"):
                found += one.status == "ESTABLISHED" and one.raddr.port == port
    return found
