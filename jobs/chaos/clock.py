"""The clock that some processes see: a library of ours in front of the C library's.

Only the wall clock is moved, as a step of NTP or an operator's ``date -s`` does it; the monotonic
clock goes on. (Not libfaketime: with it no TaskManager was ready within two minutes, both busy.)
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Self

from jobs.environment import NotReadyError

_SOURCE = Path(__file__).with_name("clock.c")
_BYTES = 8


class Clock:
    """A clock that can be set off while the processes run that see it.

    Args:
        library: What ``clock.c`` became.
        path: A file that says how far off it is.
    """

    def __init__(self, library: Path, path: Path) -> None:
        self._library, self._path = library, path
        path.write_bytes(bytes(_BYTES))

    @classmethod
    def made_in(cls, folder: Path) -> Self | None:
        """Compile the library and make a clock in a folder; none where there is no C compiler.

        Raises:
            NotReadyError: the compiler refuses it.
        """
        compiler = shutil.which("cc")
        if compiler is None:
            return None
        library = folder / "clock.so"
        command = [compiler, "-shared", "-fPIC", "-O2", "-o", str(library), str(_SOURCE), "-ldl"]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        if done.returncode != 0:
            raise NotReadyError(f"{compiler} fails: {done.stderr.strip()}", "leave clock-jump out")
        return cls(library, folder / "clock")

    def set(self, offset_s: int) -> None:
        """Be so many seconds ahead, at once."""
        with self._path.open("r+b") as file:
            file.write(offset_s.to_bytes(_BYTES, "little", signed=True))

    def variables(self) -> dict[str, str]:
        """Environment variables of a process that shall see it."""
        return {"LD_PRELOAD": str(self._library), "STREAMSCORE_CLOCK": str(self._path)}
