"""What a model must offer to be served or embedded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self, runtime_checkable

import numpy as np
import numpy.typing as npt

from model_server.errors import InvalidRows

__all__ = [
    "CONTRIBUTIONS_OUTPUT",
    "EXPLAIN_SIGNATURE",
    "INPUT_NAME",
    "PREDICT_SIGNATURE",
    "SCORES_OUTPUT",
    "Model",
    "Signature",
    "TensorSpec",
    "check_rows",
    "signatures_for",
]

PREDICT_SIGNATURE = "serving_default"
EXPLAIN_SIGNATURE = "explain"
INPUT_NAME = "inputs"
SCORES_OUTPUT = "scores"
CONTRIBUTIONS_OUTPUT = "contributions"


@dataclass(frozen=True)
class TensorSpec:
    """One tensor of a signature, as it travels.

    Attributes:
        name: Its name in requests or responses.
        dtype: Its type on the wire.
        shape: Sizes; None where any size will do.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | None, ...]


@dataclass(frozen=True)
class Signature:
    """One function of a model: one tensor in, one tensor out."""

    input: TensorSpec
    output: TensorSpec


def signatures_for(feature_count: int) -> Mapping[str, Signature]:
    """Return the signatures of a model of float32 columns, by name.

    Scores and contributions are float32 on the wire: tree ensembles compute no more than that.
    """
    float32 = np.dtype(np.float32)
    rows = TensorSpec(INPUT_NAME, float32, (None, feature_count))
    scores = TensorSpec(SCORES_OUTPUT, float32, (None,))
    contributions = TensorSpec(CONTRIBUTIONS_OUTPUT, float32, (None, feature_count))
    return {
        PREDICT_SIGNATURE: Signature(rows, scores),
        EXPLAIN_SIGNATURE: Signature(rows, contributions),
    }


@runtime_checkable
class Model(Protocol):
    """A loaded model. All methods may be called from several threads at once."""

    @classmethod
    def load(cls, version_dir: Path, *, threads: int = 1) -> Self:
        """Load a version folder.

        Args:
            version_dir: Folder in the repository's layout.
            threads: Threads for one call; at least 1.

        Raises:
            RepositoryError: The folder is not as it must be.
            ModelError: The model file cannot be served.
        """
        ...

    @property
    def feature_names(self) -> tuple[str, ...]:
        """Names of the input's columns, in order."""
        ...

    @property
    def signatures(self) -> Mapping[str, Signature]:
        """Signatures by name."""
        ...

    def warm_up(self) -> None:
        """Run dummy batches, so that the first real one is not slow."""
        ...

    def predict(self, rows: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
        """Score rows.

        Args:
            rows: float32 (n, F), n may be 0; NaN where a value is missing.

        Returns:
            Scores in [0, 1], float64 (n,).

        Raises:
            InvalidRows: Another type, rank or width.
        """
        ...

    def explain(self, rows: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
        """Split each score's raw margin among the columns.

        Args:
            rows: As for ``predict``, and finite or NaN.

        Returns:
            Contributions in log-odds, float64 (n, F), without the bias.

        Raises:
            InvalidRows: Another type, rank or width, or an infinite value.
        """
        ...


def check_rows(rows: npt.NDArray[Any], feature_count: int) -> None:
    """Refuse rows that are not float32 (n, feature_count).

    Raises:
        InvalidRows: They are not; the message says what they are.
    """
    if rows.dtype != np.float32:
        raise InvalidRows(f"rows are {rows.dtype}, must be float32")
    if rows.ndim != 2 or rows.shape[1] != feature_count:
        raise InvalidRows(f"rows have shape {rows.shape}, must be (n, {feature_count})")
