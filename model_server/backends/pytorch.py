"""PyTorch's models, TorchScript or ExportedPrograms, in a process of their own.

With a ``features.json`` beside it such a file is a table's model like any other: columns by name,
imputed values, tf.Example, one score per row.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Self

import numpy as np
import numpy.typing as npt

from model_server import repository
from model_server.backends.base import PREDICT_SIGNATURE, Signature, check_rows
from model_server.backends.remote import RemoteModel
from model_server.backends.tabular import Tabular
from model_server.errors import ModelError

__all__ = ["PyTorchTable", "load"]

_PLATFORM = "pytorch_libtorch"


def load(version_dir: Path, threads: int, python: str = "") -> RemoteModel | PyTorchTable:
    """Load a version folder, as a table's model if ``features.json`` is there.

    Args:
        version_dir: Folder in the repository's layout.
        threads: Threads for one call; at least 1.
        python: The process' interpreter; this one's if empty.

    Raises:
        RepositoryError: A file is missing or malformed.
        ModelError: The model cannot be served.
    """
    if (version_dir / repository.FEATURES_FILE).is_file():
        return PyTorchTable.load(version_dir, threads=threads, python=python)
    return _remote(version_dir, threads, python)


def _remote(version_dir: Path, threads: int, python: str) -> RemoteModel:
    return RemoteModel.load("pytorch", _PLATFORM, version_dir, threads, python)


class PyTorchTable(Tabular):
    """A function of one float32 (n, F) tensor that gives a score per row.

    The score is the output that ``features.json`` names as ``"score": {"output": …}``, or the only
    one; of (n, 2) probabilities it is the second column.
    """

    platform: ClassVar[str] = _PLATFORM

    def __init__(self, model: RemoteModel, features: repository.FeatureList) -> None:
        """Take a loaded model; see ``load``.

        Raises:
            ModelError: Its tensors are not those of a table's model.
        """
        signature = model.signatures[PREDICT_SIGNATURE]
        _check_input(signature, len(features.features))
        self._score = _score_of(signature, features.score)
        shape = next(spec.shape for spec in signature.outputs if spec.name == self._score)
        super().__init__(
            features, explains=False, classifies=shape is not None and shape[1:] == (2,)
        )
        self._model = model
        self._input = signature.inputs[0].name

    @classmethod
    def load(cls, version_dir: Path, *, threads: int = 1, python: str = "") -> Self:
        """Load a model file and ``features.json`` of a version folder; see ``load`` above."""
        features = repository.load_features(version_dir)
        model = _remote(version_dir, threads, python)
        try:
            return cls(model, features)
        except ModelError:
            model.close()
            raise

    def predict(self, rows: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
        """Score rows.

        Args:
            rows: float32 (n, F); NaN as the model takes it.

        Returns:
            The score output's values, float64 (n,).

        Raises:
            InvalidRows: Another type, rank or width.
            ModelError: The output has not one score per row.
            ServableNotReady: The model's process has ended and is being started again.
        """
        check_rows(rows, len(self._features.features))
        if not len(rows):
            return np.empty(0, np.float64)
        values = self._model.run(PREDICT_SIGNATURE, {self._input: rows}, [self._score])[self._score]
        if values.ndim == 2 and values.shape[1] <= 2:
            values = values[:, -1]
        if values.shape != (len(rows),):
            raise ModelError(f"output {self._score} is {values.shape} for {len(rows)} rows")
        return values.astype(np.float64)

    def is_quick(self, signature_name: str, rows: int) -> bool:
        """Never: the answer is waited for."""
        return False

    def close(self) -> None:
        """End the process."""
        self._model.close()


def _check_input(signature: Signature, columns: int) -> None:
    (spec, *more) = signature.inputs
    if more or spec.dtype != np.float32 or spec.shape is None or len(spec.shape) != 2:
        raise ModelError("the model must take one float32 (n, F) input to go with features.json")
    if spec.shape != (None, columns):
        raise ModelError(
            f"the model takes {list(spec.shape)}, features.json beside it names {columns} columns: "
            "export it with any number of rows, and both from one training run"
        )


def _score_of(signature: Signature, wanted: str) -> str:
    names = [spec.name for spec in signature.outputs]
    if wanted in names:
        return wanted
    if wanted or len(names) != 1:
        raise ModelError(
            f"the model has the outputs {', '.join(names)}: say which is the score, as "
            '"score": {"output": "NAME"} in features.json'
        )
    return names[0]
