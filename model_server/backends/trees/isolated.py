"""Boosters compiled in a process of its own.

Reading a booster keeps the interpreter's lock for as long as half a second, and XGBoost takes more
memory than all else in a server: neither shall be felt by those whose calls are answered meanwhile.
And a file that crashes XGBoost crashes only that process.

Its answer is used where it lies, see ``frames``: to read NumPy's own files, which are zip archives,
would hold the lock for some milliseconds again.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy.typing as npt

from model_server import repository
from model_server.backends.frames import pack, unpack
from model_server.backends.trees.contributions import Paths
from model_server.backends.trees.forest import Forest
from model_server.backends.trees.native import Run, kernels
from model_server.backends.trees.sample import Compiled, Sample
from model_server.errors import ModelError, ModelServerError, RepositoryError

__all__ = ["compile_in_child"]

_MODULE = "model_server.backends.trees.isolated"
_FOREST = ("features", "thresholds", "missing_right", "leaves", "base_margin")
_PATHS = ("roots", "columns", "values", "missing_right", "children", "earlier", "steps")
_SAMPLE = ("rows", "scores", "contributions")
_LOWER_PRIORITY = 10


def compile_in_child(version_dir: Path) -> Compiled | None:
    """Compile the booster of a version folder; None if it is of another kind.

    Raises:
        RepositoryError: A file is missing or malformed.
        ModelError: The booster cannot be served, or its reader crashed.
    """
    with Run(_MODULE, str(version_dir)) as run:
        kernels()  # loaded meanwhile
        head, arrays = unpack(run.output())
    if "error" in head:
        kind = RepositoryError if head["kind"] == RepositoryError.__name__ else ModelError
        raise kind(head["error"])
    return _unpacked(arrays) if arrays else None


def _unpacked(arrays: Mapping[str, npt.NDArray[Any]]) -> Compiled:
    def part(name: str, fields: tuple[str, ...]) -> dict[str, Any]:
        return {field: arrays[f"{name}.{field}"] for field in fields}

    paths = Paths(**part("paths", _PATHS)) if "paths.roots" in arrays else None
    forest = Forest(**part("forest", _FOREST), paths=paths)
    return Compiled(forest, Sample(**part("sample", _SAMPLE)))


def _packed(compiled: Compiled) -> dict[str, npt.NDArray[Any]]:
    parts = [("forest", compiled.forest, _FOREST), ("sample", compiled.sample, _SAMPLE)]
    if compiled.forest.paths is not None:
        parts.append(("paths", compiled.forest.paths, _PATHS))
    return {
        f"{name}.{field}": getattr(part, field) for name, part, fields in parts for field in fields
    }


def _compiled(version_dir: Path) -> dict[str, npt.NDArray[Any]]:
    from model_server.backends import boosters
    from model_server.backends.trees.compiler import compile_booster

    path, features = repository.model_file(version_dir), repository.load_features(version_dir)
    compiled = compile_booster(boosters.load(path, features))
    return {} if compiled is None else _packed(compiled)


def main(version_dir: str) -> None:
    """Compile and write to stdout."""
    os.nice(_LOWER_PRIORITY)
    gc.disable()  # hundreds of thousands of small objects, and none of them in a cycle
    # XGBoost imports these where they are installed, for a second, to accept their types.
    sys.modules["pandas"] = sys.modules["sklearn"] = None  # type: ignore[assignment]
    try:
        answer = pack({}, _compiled(Path(version_dir)))
    except ModelServerError as exc:
        answer = pack({"error": str(exc), "kind": type(exc).__name__}, {})
    sys.stdout.buffer.write(answer)
    sys.stdout.flush()
    os._exit(0)  # without the tenth of a second in which libraries tidy up


if __name__ == "__main__":
    main(sys.argv[1])
