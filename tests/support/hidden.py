"""The tests' secrets, which no process of the suite may write to a log."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

PASSWORD = "pass;word\\of='scorer"
"""Has what a JAAS text has to escape."""
TOKEN = "s3cret"

_TOLD = (b"pass;word", TOKEN.encode())
_LOGS = {".log", ".out", ".err", ".jsonl"}


def shown(folders: Iterable[Path]) -> list[str]:
    """Paths of the logs below folders that hold a secret."""
    return [
        str(path)
        for folder in folders
        for path in folder.rglob("*")
        if path.suffix in _LOGS and path.is_file() and _holds_one(path)
    ]


def _holds_one(path: Path) -> bool:
    content = path.read_bytes()
    return any(secret in content for secret in _TOLD)
