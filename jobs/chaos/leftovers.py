"""Processes of a run, written down: the next run ends those that a killed one has left."""

from __future__ import annotations

import json
import signal
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jobs.processes import Started, end, find

_STOP_S = 10.0


class Leftovers:
    """Remembers processes by name, id and start.

    Args:
        folder: Of the run; ``processes.json`` in it has them.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / "processes.json"

    def note(self, name: str, pid: int | None, mark: str) -> None:
        """Write a process down; a later one of the same name takes its place.

        Args:
            name: Its name in the run.
            pid: Its id; none does nothing.
            mark: A text that one of its arguments contains.
        """
        if pid is None:
            return
        found = self._read() | {name: asdict(Started.of(pid)) | {"mark": mark}}
        draft = self._path.with_suffix(".tmp")
        draft.write_text(json.dumps(found), encoding="utf-8")
        draft.replace(self._path)

    def end(self) -> None:
        """End those that still run."""
        for entry in self._read().values():
            process = find(Started(entry["pid"], entry["started_at_s"]), entry["mark"])
            if process is not None:
                end(process, signal.SIGTERM, _STOP_S)
        self._path.unlink(missing_ok=True)

    def _read(self) -> dict[str, dict[str, Any]]:
        try:
            found: dict[str, dict[str, Any]] = json.loads(self._path.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return {}
        return found
