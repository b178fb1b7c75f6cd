"""What a `streamscore` command's exit code means."""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """The exit codes; scripts may rely on them."""

    OK = 0
    FAILED = 1
    USAGE = 2
    CONFIG_REFUSED = 3
    NOT_READY = 4

    @property
    def meaning(self) -> str:
        """One line for the help text."""
        return _MEANINGS[self]


_MEANINGS = {
    ExitCode.OK: "done",
    ExitCode.FAILED: "the command ran and failed",
    ExitCode.USAGE: "wrong command line",
    ExitCode.CONFIG_REFUSED: "the settings file was refused",
    ExitCode.NOT_READY: "something it needs is missing; `streamscore doctor` says what",
}
