"""The clock that some processes see: libfaketime in front of the C library's.

Only the wall clock is moved, as a step of NTP or an operator's ``date -s`` does it; the monotonic
clock goes on.
"""

from __future__ import annotations

from pathlib import Path

_LIBRARIES = "*/faketime/libfaketimeMT.so.1"
"""Of Debian's package libfaketime, below the folder of libraries."""


class Clock:
    """A clock that can be set off while the processes run that see it.

    Args:
        library: libfaketime's file.
        path: A file that says how far off it is.
    """

    def __init__(self, library: Path, path: Path) -> None:
        self._library, self._path = library, path
        self.set(0)

    def set(self, offset_s: int) -> None:
        """Be so many seconds ahead; processes see it within a second."""
        draft = self._path.with_suffix(".tmp")
        draft.write_text(f"{offset_s:+d}\n", encoding="utf-8")
        draft.replace(self._path)

    def variables(self) -> dict[str, str]:
        """Environment variables of a process that shall see it."""
        return {
            "LD_PRELOAD": str(self._library),
            "FAKETIME_TIMESTAMP_FILE": str(self._path),
            "FAKETIME_CACHE_DURATION": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "FAKETIME_SKIP_CMDS": "bash,sh",
        }


def faketime(folders: Path = Path("/usr/lib")) -> Path | None:
    """Libfaketime's file; none if it is not installed."""
    return next(iter(sorted(folders.glob(_LIBRARIES))), None)
