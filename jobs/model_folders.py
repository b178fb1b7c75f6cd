"""Writes a new version of a model: beside its place, then renamed.

A server that looks at any moment finds the whole version or none.
"""

from __future__ import annotations

import errno
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson

from model_server.repository import ModelVersion, list_versions

__all__ = ["METRICS_FILE", "publish", "write_json"]

METRICS_FILE = "metrics.json"
_TAKEN = frozenset((errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR))


def write_json(path: Path, document: dict[str, Any]) -> None:
    """Write an indented JSON document."""
    path.write_bytes(orjson.dumps(document, option=orjson.OPT_INDENT_2))


def publish(models_dir: Path, name: str, write: Callable[[Path], None]) -> ModelVersion:
    """Write the next free version of a model; another training may take one at the same time.

    Args:
        models_dir: The repository's root.
        name: The model's name.
        write: Writes the version's files into the folder that it gets.

    Raises:
        OSError, RepositoryError: It cannot be written.
    """
    draft = models_dir / name / f".draft-{uuid.uuid4().hex}"
    try:
        draft.mkdir(parents=True)
        write(draft)
        return _renamed(draft, models_dir, name)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _renamed(draft: Path, models_dir: Path, name: str) -> ModelVersion:
    version = max(list_versions(models_dir, name), default=0)
    while True:
        version += 1
        target = models_dir / name / str(version)
        try:
            draft.rename(target)
        except OSError as exc:
            if exc.errno not in _TAKEN:
                raise
        else:
            return ModelVersion(name, version, target.resolve())
