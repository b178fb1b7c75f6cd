"""What a model must offer to be served or embedded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, Self, runtime_checkable

import numpy as np
import numpy.typing as npt

from model_server.errors import InvalidRequest, InvalidRows

__all__ = [
    "PREDICT_SIGNATURE",
    "Arrays",
    "Method",
    "Model",
    "Signature",
    "TabularModel",
    "TensorSpec",
    "check_rows",
    "checked_inputs",
]

PREDICT_SIGNATURE = "serving_default"

Arrays = Mapping[str, npt.NDArray[Any]]
"""Tensors by name."""

Method = Literal["predict", "classify", "regress"]
"""Which of TensorFlow Serving's calls a signature is for; Predict takes any."""


@dataclass(frozen=True)
class TensorSpec:
    """One tensor of a signature, as it travels.

    Attributes:
        name: Its name in requests or responses.
        dtype: Its type on the wire; object for strings, whose elements are bytes.
        shape: Sizes; None where any size will do. None as a whole: any rank.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | None, ...] | None


@dataclass(frozen=True)
class Signature:
    """One function of a model: named tensors in, named tensors out."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    method: Method = "predict"


@runtime_checkable
class Model(Protocol):
    """A loaded model. All methods may be called from several threads at once."""

    @property
    def platform(self) -> str:
        """Its kind, in the Open Inference Protocol's words: "xgboost_xgboost"."""
        ...

    @property
    def signatures(self) -> Mapping[str, Signature]:
        """Signatures by name; ``serving_default`` is always there."""
        ...

    def warm_up(self) -> None:
        """Run dummy batches, so that the first real one is not slow."""
        ...

    def is_quick(self, signature_name: str, rows: int) -> bool:
        """Whether a call takes less time than handing it to another thread."""
        ...

    def run(self, signature_name: str, inputs: Arrays, wanted: Sequence[str]) -> Arrays:
        """Call a signature.

        Args:
            signature_name: One of ``signatures``.
            inputs: What the signature takes, as ``checked_inputs`` returns it.
            wanted: Outputs to compute, at least one.

        Returns:
            The wanted outputs, as the signature describes them.

        Raises:
            InvalidRows: The values are none that the model takes.
        """
        ...

    def close(self) -> None:
        """Give back what the model holds; no call is at work any more."""
        ...


@runtime_checkable
class TabularModel(Protocol):
    """A model of one score per row of float32 columns, as a Flink operator embeds it."""

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

    def warm_up(self) -> None:
        """Run dummy batches, so that the first real one is not slow."""
        ...

    def predict(self, rows: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
        """Score rows.

        Args:
            rows: float32 (n, F), n may be 0; NaN where a value is missing.

        Returns:
            Scores, float64 (n,).

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


def checked_inputs(signature: Signature, arrays: Arrays, *, take_integers: bool = False) -> Arrays:
    """Fit a request's tensors to a signature.

    Floats of any width are taken for floats of another, as a client's doubles for float32.

    Args:
        signature: What is called.
        arrays: The request's tensors.
        take_integers: Whether integers and booleans may stand for floats, as in JSON, where
            ``1`` is a float too. TensorFlow Serving's gRPC refuses them.

    Raises:
        InvalidRequest: Another name, type or shape, or unequal numbers of rows.
    """
    expected = {spec.name for spec in signature.inputs}
    if arrays.keys() != expected:
        raise InvalidRequest(
            f"input size does not match signature: sent {{{','.join(sorted(arrays))}}}, "
            f"expected {{{','.join(sorted(expected))}}}"
        )
    checked = {s.name: _fitted(s, arrays[s.name], take_integers) for s in signature.inputs}
    if len(checked) > 1:
        _check_equal_rows(signature, checked)
    return checked


def _fitted(spec: TensorSpec, array: npt.NDArray[Any], take_integers: bool) -> npt.NDArray[Any]:
    if spec.shape is not None and not _shape_fits(array.shape, spec.shape):
        sizes = ", ".join("n" if size is None else str(size) for size in spec.shape)
        raise InvalidRequest(f"input {spec.name} has shape {array.shape}, expected ({sizes})")
    if array.dtype == spec.dtype:
        return array
    if spec.dtype.kind == "f" and array.dtype.kind in ("fiub" if take_integers else "f"):
        with np.errstate(over="ignore"):  # a double beyond float32 becomes infinite, as in C
            return array.astype(spec.dtype)
    raise InvalidRequest(
        f"input {spec.name} is {_type_name(array.dtype)}, expected {_type_name(spec.dtype)}"
    )


def _type_name(dtype: np.dtype[Any]) -> str:
    return "string" if dtype.kind == "O" else dtype.name


def _shape_fits(shape: tuple[int, ...], expected: tuple[int | None, ...]) -> bool:
    return len(shape) == len(expected) and all(
        size is None or size == actual for actual, size in zip(shape, expected, strict=True)
    )


def _check_equal_rows(signature: Signature, arrays: Arrays) -> None:
    """Refuse inputs of unequal first sizes where the signature leaves them open."""
    rows = {
        spec.name: len(arrays[spec.name])
        for spec in signature.inputs
        if spec.shape and spec.shape[0] is None
    }
    if len(set(rows.values())) > 1:
        listed = ", ".join(f"{name} {count}" for name, count in rows.items())
        raise InvalidRequest(f"inputs have unequal numbers of rows: {listed}")
