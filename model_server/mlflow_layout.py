"""A model that MLflow logged, laid out as a version folder of this server.

Which file is the model is written in ``MLmodel``. Taken are those that are loaded without a pickle:

===============  ====================================================================
flavour          becomes
===============  ====================================================================
``xgboost``      ``model.ubj`` or ``model.json``, and ``features.json``
``onnx``         ``model.onnx`` with what lies beside it
``tensorflow``   a SavedModel's folder
``pytorch``      ``model.pt2``, or ``model.pt`` if it is TorchScript
===============  ====================================================================

``features.json`` is what was logged as ``metadata={"features": {...}}``; an XGBoost model without
gets the columns of its signature, a missing value staying one. TorchScript gets a
``signature.json`` from its signature.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import yaml

from model_server.errors import RepositoryError
from model_server.oip.datatypes import DATATYPE_NAMES
from model_server.repository import FEATURES_FILE
from model_server.signature_file import SIGNATURE_FILE

__all__ = ["MLMODEL", "check", "lay_out", "read"]

MLMODEL = "MLmodel"
_FEATURES = "features"
_HOW = (
    "log it with mlflow.onnx.log_model (scikit-learn by skl2onnx), or as an XGBoost Booster, a "
    "TensorFlow SavedModel, or by mlflow.pytorch with serialization_format='pt2'"
)

Description = Mapping[str, Any]
"""What MLmodel says."""


def read(path: Path, address: str) -> Description:
    """Read an ``MLmodel``.

    Args:
        path: The file.
        address: The version's, for errors.

    Raises:
        RepositoryError: It is no mapping in YAML with flavours.
    """
    try:
        document = yaml.safe_load(path.read_bytes())
    except yaml.YAMLError as exc:
        raise RepositoryError(f"{address}: {MLMODEL} is not YAML: {exc}") from exc
    if not isinstance(document, dict) or not isinstance(document.get("flavors"), dict):
        raise RepositoryError(f"{address}: {MLMODEL} names no flavors")
    return document


def check(description: Description, address: str) -> None:
    """Refuse a model that only a pickle or Python code can load.

    Raises:
        RepositoryError: It is one; the message says what to do.
    """
    _flavour(description, address)


def _flavour(description: Description, address: str) -> str:
    flavours = description["flavors"]
    for name in _WRITERS:
        if name in flavours:
            return name
    raise RepositoryError(
        f"{address} has the flavours {', '.join(sorted(flavours))}, none of which is loaded "
        f"without a pickle: {_HOW}"
    )


def lay_out(description: Description, files: Path, folder: Path, address: str) -> None:
    """Move a model's files into a version folder.

    Args:
        description: What its MLmodel says.
        files: What MLflow stored.
        folder: The version's, empty.
        address: The version's, for errors.

    Raises:
        RepositoryError: The model is a pickle, or a file that MLmodel names is not there.
    """
    name = _flavour(description, address)
    _WRITERS[name](description, files, folder, address)
    features = (description.get("metadata") or {}).get(_FEATURES)
    if features is None and name == "xgboost":
        features = _features(description, address)
    if features is not None:
        (folder / FEATURES_FILE).write_text(json.dumps(features), encoding="utf-8")


def _named(description: Description, files: Path, key: str, flavour: str, address: str) -> Path:
    """Return what a flavour's entry names, below the model's files."""
    inside = description["flavors"][flavour].get(key)
    if not isinstance(inside, str) or ".." in PurePosixPath(inside).parts:
        raise RepositoryError(f"{address}: {MLMODEL} has no {key} for {flavour}")
    path = files / inside
    if not path.resolve().is_relative_to(files.resolve()) or not path.exists():
        raise RepositoryError(f"{address} has no {inside}, which its {MLMODEL} names")
    return path


def _xgboost(description: Description, files: Path, folder: Path, address: str) -> None:
    path = _named(description, files, "data", "xgboost", address)
    with path.open("rb") as file:
        start = file.read(2)
    # As XGBoost tells them: UBJSON's first key follows at once, by its length.
    is_json = start[:1] == b"{" and start[1:] in (b'"', b" ", b"\n", b"\r", b"\t")
    path.rename(folder / ("model.json" if is_json else "model.ubj"))


def _features(description: Description, address: str) -> dict[str, Any]:
    """Return a ``features.json`` of the signature's columns."""
    names = _columns(description, address)
    return {
        "format": 1,
        "features": [{"name": name, "type": "float", "impute": None} for name in names],
    }


def _columns(description: Description, address: str) -> list[str]:
    entries = _tensors(description, "inputs")
    names = [entry.get("name") for entry in entries]
    if names and all(isinstance(name, str) and name for name in names):
        return [str(name) for name in names]
    shape = entries[0].get("tensor-spec", {}).get("shape", []) if len(entries) == 1 else []
    if len(shape) == 2 and isinstance(shape[1], int) and shape[1] > 0:
        return [f"f{n}" for n in range(shape[1])]  # XGBoost's own names
    raise RepositoryError(
        f"{address} does not name its columns: log it with a signature or an input_example, or "
        'with metadata={"features": …}, the contents of a features.json'
    )


def _tensors(description: Description, side: str) -> list[dict[str, Any]]:
    """Return the columns or tensors of the signature, in order; none if there is no signature."""
    said = (description.get("signature") or {}).get(side)
    try:
        entries = json.loads(said) if said else []
    except (TypeError, ValueError):
        return []
    return [entry for entry in entries if isinstance(entry, dict)]


def _onnx(description: Description, files: Path, folder: Path, address: str) -> None:
    path = _named(description, files, "data", "onnx", address)
    for other in path.parent.iterdir():  # tensors may be in files of their own
        if other.is_file() and other != path:
            other.rename(folder / other.name)
    path.rename(folder / "model.onnx")


def _tensorflow(description: Description, files: Path, folder: Path, address: str) -> None:
    entry = description["flavors"]["tensorflow"]
    if "saved_model_dir" in entry:
        path = _named(description, files, "saved_model_dir", "tensorflow", address)
    else:  # Keras's
        path = _named(description, files, "data", "tensorflow", address) / "model"
    if not (path / "saved_model.pb").is_file():
        raise RepositoryError(
            f"{address} is a Keras file, not a SavedModel: model.export() a folder, and log "
            "tf.saved_model.load() of it with mlflow.tensorflow.log_model"
        )
    for child in path.iterdir():
        child.rename(folder / child.name)


def _pytorch(description: Description, files: Path, folder: Path, address: str) -> None:
    data = _named(description, files, "model_data", "pytorch", address)
    if (data / "model.pt2").is_file():
        (data / "model.pt2").rename(folder / "model.pt2")
        return
    path = data / "model.pth"
    if not _is_torchscript(path):
        raise RepositoryError(f"{address} is a pickled PyTorch module: {_HOW}")
    path.rename(folder / "model.pt")
    sides = {side: _described(description, side) for side in ("inputs", "outputs")}
    if all(sides.values()):
        (folder / SIGNATURE_FILE).write_text(json.dumps(sides), encoding="utf-8")


def _is_torchscript(path: Path) -> bool:
    """Whether it is torch.jit.save's archive: torch.save's has no constants."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(PurePosixPath(n).name == "constants.pkl" for n in archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False


def _described(description: Description, side: str) -> list[dict[str, Any]]:
    """Return a side of ``signature.json``; unnamed tensors get Triton's names."""
    tensors = []
    for number, entry in enumerate(_tensors(description, side)):
        spec = entry.get("tensor-spec", {})
        try:
            datatype = DATATYPE_NAMES[np.dtype(spec["dtype"])]
        except (KeyError, TypeError):
            return []
        name = entry.get("name") or f"{side.upper().removesuffix('S')}__{number}"
        tensors.append({"name": name, "datatype": datatype, "shape": spec.get("shape")})
    return tensors


_WRITERS: Mapping[str, Callable[[Description, Path, Path, str], None]] = {
    "xgboost": _xgboost,
    "onnx": _onnx,
    "tensorflow": _tensorflow,
    "pytorch": _pytorch,
}
"""How each flavour is laid out; the first that a model has is taken."""
