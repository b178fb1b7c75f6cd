"""The kinds of models, and which kind a version folder holds."""

from __future__ import annotations

from pathlib import Path

from model_server.backends.base import Model
from model_server.backends.tabular import Tabular
from model_server.errors import RepositoryError
from model_server.repository import MODEL_FILES

__all__ = ["load", "load_table"]


def load(version_dir: Path, threads: int, *, python: str = "") -> Model:
    """Load a version folder by the files in it.

    Args:
        version_dir: Folder in the repository's layout.
        threads: Threads for one call; at least 1.
        python: Interpreter for models that run in a process of their own; this one's if empty.

    Raises:
        RepositoryError: No file of a known kind, or one that is malformed.
        ModelError: The model cannot be served.
    """
    # Each kind is imported where it is met: nobody pays for a library that is not used.
    if any((version_dir / name).is_file() for name in MODEL_FILES):
        from model_server.backends.xgboost import XGBoostModel

        return XGBoostModel.load(version_dir, threads=threads, isolated=True)
    if (version_dir / "model.onnx").is_file():
        from model_server.backends import onnx

        return onnx.load(version_dir, threads)
    if (version_dir / "saved_model.pb").is_file():
        from model_server.backends.remote import RemoteModel

        return RemoteModel.load(
            "saved_model", "tensorflow_savedmodel", version_dir, threads, python
        )
    if any((version_dir / name).is_file() for name in ("model.pt2", "model.pt")):
        from model_server.backends import pytorch

        return pytorch.load(version_dir, threads, python)
    raise _unknown(version_dir, "saved_model.pb", "model.pt2", "model.pt")


def load_table(version_dir: Path) -> Tabular:
    """Load a model of columns with one score per row into this process, as an operator does.

    Args:
        version_dir: Folder in the repository's layout, with a ``features.json``.

    Raises:
        RepositoryError: No file of a kind that can be embedded, or one that is malformed.
        ModelError: The model cannot be used.
    """
    if any((version_dir / name).is_file() for name in MODEL_FILES):
        from model_server.backends.xgboost import XGBoostModel

        return XGBoostModel.load(version_dir)
    if (version_dir / "model.onnx").is_file():
        from model_server.backends.onnx import OnnxTable

        return OnnxTable.load(version_dir)
    if any((version_dir / name).is_file() for name in ("model.pt2", "model.pt")):
        from model_server.backends.pytorch import PyTorchTable

        return PyTorchTable.load(version_dir)
    raise _unknown(version_dir, "model.pt2", "model.pt")


def _unknown(version_dir: Path, *others: str) -> RepositoryError:
    return RepositoryError(
        f"{version_dir} has none of {', '.join([*MODEL_FILES, 'model.onnx', *others])}: "
        "save the model there under one of these names"
    )
