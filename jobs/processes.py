"""Processes that outlive the command that started them: known by id and start, ended by id."""

from __future__ import annotations

import signal
from contextlib import suppress
from dataclasses import dataclass
from typing import Self

import psutil

_CLOCK_SLACK_S = 2.0


@dataclass(frozen=True)
class Started:
    """A process as it is written down.

    Attributes:
        pid: Its process id.
        started_at_s: The process' start in seconds since the epoch; tells a recycled pid.
    """

    pid: int
    started_at_s: float

    @classmethod
    def of(cls, pid: int) -> Self:
        """The process with this id, which runs."""
        return cls(pid, psutil.Process(pid).create_time())


def find(started: Started, mark: str) -> psutil.Process | None:
    """The process, None if it ended, even if its id was given to another one.

    Args:
        started: What was written down.
        mark: A text that one of its arguments contains.
    """
    with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
        process = psutil.Process(started.pid)
        same_start = abs(process.create_time() - started.started_at_s) < _CLOCK_SLACK_S
        # A process that becomes another program (a script's `exec`) has no arguments for a moment.
        arguments = process.cmdline()
        marked = not arguments or any(mark in argument for argument in arguments)
        if same_start and marked and process.status() != psutil.STATUS_ZOMBIE:
            return process
    return None


def end(process: psutil.Process, how: signal.Signals, timeout_s: float) -> None:
    """Send a signal, wait, then SIGKILL."""
    with suppress(psutil.NoSuchProcess):
        process.send_signal(how)
        try:
            process.wait(timeout_s)
        except psutil.TimeoutExpired:
            process.kill()
            process.wait(timeout_s)
