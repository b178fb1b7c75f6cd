"""Copies of versions that lie elsewhere, in the user's cache folder."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Self

__all__ = ["Copies", "cache_dir"]


def cache_dir() -> Path:
    """Return the user's folder for what can be made again."""
    given = os.environ.get("XDG_CACHE_HOME")
    return (Path(given) if given else Path.home() / ".cache") / "streamscore"


class Copies:
    """Folders ``<name>/<key>/<version>``. For one thread at a time."""

    def __init__(self, folder: Path) -> None:
        """Keep them below ``folder``."""
        self._folder = folder

    @classmethod
    def of(cls, address: str) -> Self:
        """Keep those of a repository in a cache folder of its own."""
        return cls(cache_dir() / "models" / _short_hash(address))

    def get(self, name: str, version: int, state: object, write: Callable[[Path], None]) -> Path:
        """Return a version's copy, made anew if the version has changed.

        Args:
            name: The model's folder.
            version: The version.
            state: What differs when the version's files do.
            write: Writes the files into an empty folder; what it raises is raised.
        """
        target = self._folder / name / _short_hash(repr(state)) / str(version)
        if target.is_dir():
            return target
        target.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(dir=target.parent))
        try:
            write(draft)
            self._forget(name, version)
            draft.rename(target)
        except BaseException:
            shutil.rmtree(draft, ignore_errors=True)
            raise
        return target

    def _forget(self, name: str, version: int) -> None:
        """Delete copies of what the version was before; loaded models have read theirs."""
        for copy in (self._folder / name).glob(f"*/{version}"):
            shutil.rmtree(copy, ignore_errors=True)


def _short_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
