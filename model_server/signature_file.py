"""``signature.json``: the tensors of a model whose file does not say them, as TorchScript's.

In the Open Inference Protocol's words, as MLServer's ``model-settings.json`` has them::

    {"inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 5]}],
     "outputs": [{"name": "score", "datatype": "FP32", "shape": [-1]}]}

Inputs stand in the order of the function's arguments, outputs in that of its results; ``-1`` is any
size.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from model_server.backends.base import Signature, TensorSpec
from model_server.errors import RepositoryError
from model_server.oip.datatypes import DATATYPES

__all__ = ["SIGNATURE_FILE", "read"]

SIGNATURE_FILE = "signature.json"


def read(version_dir: Path) -> Signature | None:
    """Read the file of a version folder; None if there is none.

    Raises:
        RepositoryError: It is malformed.
    """
    path = version_dir / SIGNATURE_FILE
    if not path.is_file():
        return None
    try:
        document = json.loads(path.read_bytes())
    except ValueError as exc:
        raise RepositoryError(f"{path} is not JSON: {exc}") from exc
    if not isinstance(document, dict):
        raise RepositoryError(f"{path} must hold a JSON object")
    return Signature(_specs(path, document, "inputs"), _specs(path, document, "outputs"))


def _specs(path: Path, document: dict[str, Any], side: str) -> tuple[TensorSpec, ...]:
    entries = document.get(side)
    if not isinstance(entries, list) or not entries:
        raise RepositoryError(f'{path}: "{side}" must be a list of at least one tensor')
    specs = tuple(_spec(f"{path}: {side}[{n}]", entry) for n, entry in enumerate(entries))
    if len({spec.name for spec in specs}) != len(specs):
        raise RepositoryError(f'{path}: "{side}" must have names of their own')
    return specs


def _spec(where: str, entry: Any) -> TensorSpec:
    if not isinstance(entry, dict):
        raise RepositoryError(f"{where} must be an object")
    name, datatype, shape = (entry.get(key) for key in ("name", "datatype", "shape"))
    if not isinstance(name, str) or not name:
        raise RepositoryError(f'{where}: "name" must be a text that is not empty')
    if datatype not in DATATYPES:
        raise RepositoryError(
            f'{where} ({name}): "datatype" is {datatype!r}, must be one of {", ".join(DATATYPES)}'
        )
    if not isinstance(shape, list) or not all(type(size) is int and size >= -1 for size in shape):
        raise RepositoryError(f'{where} ({name}): "shape" must be a list of sizes, -1 for any')
    sizes = tuple(None if size == -1 else size for size in shape)
    return TensorSpec(name, DATATYPES[datatype], sizes)
