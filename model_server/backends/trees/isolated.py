"""Boosters compiled in a process of its own.

Reading a booster keeps the interpreter's lock for as long as half a second, and XGBoost takes more
memory than all else in a server: neither shall be felt by those whose calls are answered meanwhile.
And a file that crashes XGBoost crashes only that process.

The child writes one line of JSON, with an error or the arrays' names, types, shapes and places, and
then their values, which are used where they lie: to read NumPy's own files, which are zip archives,
would hold the lock for some milliseconds again.
"""

from __future__ import annotations

import gc
import json
import math
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from model_server import repository
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
_ALIGNMENT = 64


def compile_in_child(version_dir: Path) -> Compiled | None:
    """Compile the booster of a version folder; None if it is of another kind.

    Raises:
        RepositoryError: A file is missing or malformed.
        ModelError: The booster cannot be served, or its reader crashed.
    """
    with Run(_MODULE, str(version_dir)) as run:
        kernels()  # loaded meanwhile
        answer = run.output()
    head = answer.readline()
    said = json.loads(head)
    if said["error"] is not None:
        kind = RepositoryError if said["kind"] == RepositoryError.__name__ else ModelError
        raise kind(said["error"])
    arrays = {
        name: np.frombuffer(answer, dtype, math.prod(shape), offset=_aligned(len(head)) + at)
        .reshape(shape)
        for name, dtype, shape, at in said["arrays"]
    }  # fmt: skip
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


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


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
    said: dict[str, Any] = {"error": None, "arrays": []}
    body = bytearray()
    try:
        for name, array in _compiled(Path(version_dir)).items():
            said["arrays"].append((name, array.dtype.str, array.shape, len(body)))
            body += array.tobytes()
            body += bytes(_aligned(len(body)) - len(body))
    except ModelServerError as exc:
        said |= {"error": str(exc), "kind": type(exc).__name__}
    head = json.dumps(said).encode() + b"\n"
    sys.stdout.buffer.write(head + bytes(_aligned(len(head)) - len(head)) + body)
    sys.stdout.flush()
    os._exit(0)  # without the tenth of a second in which libraries tidy up


if __name__ == "__main__":
    main(sys.argv[1])
