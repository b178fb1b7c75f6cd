"""ONNX models, run by ONNX Runtime on the CPU; an extra.

``model.onnx`` alone is served by the names, types and shapes that it declares. With a
``features.json`` beside it, it is a table's model like any other: columns by name, imputed values,
tf.Example, one score per row. That is how scikit-learn's models come here, through skl2onnx
(``options={"zipmap": False}``), an Isolation Forest among them.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

from model_server import repository, warmup
from model_server.backends.base import (
    PREDICT_SIGNATURE,
    Arrays,
    Signature,
    TensorSpec,
    check_rows,
)
from model_server.backends.tabular import INLINE_ROWS, Tabular
from model_server.errors import InvalidRows, ModelError

__all__ = ["OnnxModel", "OnnxTable", "load"]

_PLATFORM = "onnx_onnxruntime"
_DTYPES: dict[str, Any] = {
    "tensor(float16)": np.float16,
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(bool)": np.bool_,
    "tensor(string)": object,
    **{
        f"tensor({sign}int{bits})": np.dtype(f"{sign}int{bits}").type
        for sign in ("", "u")
        for bits in (8, 16, 32, 64)
    },
}
_QUICK_S = 200e-6
"""A call up to this long is not worth the hop to a thread, which costs 60 us."""
_TIMED_CALLS = 5


def load(version_dir: Path, threads: int = 1) -> OnnxModel | OnnxTable:
    """Load ``model.onnx`` of a version folder, as a table's model if ``features.json`` is there.

    Args:
        version_dir: Folder in the repository's layout.
        threads: Threads for one call; at least 1.

    Raises:
        RepositoryError: A file is missing or malformed.
        ModelError: ONNX Runtime is not installed or cannot load the model.
    """
    with_columns = (version_dir / repository.FEATURES_FILE).is_file()
    return (OnnxTable if with_columns else OnnxModel).load(version_dir, threads=threads)


class _Session:
    """A loaded graph with its signature."""

    def __init__(self, path: Path, threads: int) -> None:
        runtime = _runtime()
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        try:
            self._session: Any = runtime.InferenceSession(
                path, options, providers=["CPUExecutionProvider"]
            )
        except Exception as exc:  # its exceptions have no common base
            reason = str(exc).splitlines()[0] if str(exc) else type(exc).__name__
            raise ModelError(f"{path} is not an ONNX model that can be run: {reason}") from exc
        self.signature = Signature(
            tuple(_spec(path, node) for node in self._session.get_inputs()),
            tuple(_spec(path, node) for node in self._session.get_outputs()),
        )

    def run(self, inputs: Arrays, wanted: Sequence[str]) -> list[npt.NDArray[Any]]:
        """Return the wanted outputs.

        Raises:
            InvalidRows: The graph cannot take these values, as a shape that it does not declare.
        """
        feeds = {name: _as_fed(array) for name, array in inputs.items()}
        try:
            return list(self._session.run(list(wanted), feeds))
        except Exception as exc:  # its exceptions have no common base
            raise InvalidRows(f"the model cannot take these values: {exc}") from exc


def _runtime() -> ModuleType:
    try:
        import onnxruntime  # type: ignore[import-untyped, import-not-found, unused-ignore]
    except ImportError as exc:
        raise ModelError(
            "ONNX models need ONNX Runtime: make setup EXTRA=onnx, or "
            "pip install 'streamscore[onnx]'"
        ) from exc
    module: ModuleType = onnxruntime
    return module


def _spec(path: Path, node: Any) -> TensorSpec:
    dtype = _DTYPES.get(node.type)
    if dtype is None:
        raise ModelError(
            f"{path}: {node.name} is {node.type}, which cannot be sent; a classifier of "
            "scikit-learn is converted with options={'zipmap': False}"
        )
    shape = tuple(size if isinstance(size, int) else None for size in node.shape)
    return TensorSpec(node.name, np.dtype(dtype), shape)


def _as_fed(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    if array.dtype.kind != "O":
        return np.ascontiguousarray(array)
    texts = [v.decode(errors="replace") if isinstance(v, bytes) else v for v in array.ravel()]
    return np.array(texts, dtype=object).reshape(array.shape)


class OnnxModel:
    """A graph, served by its own inputs and outputs."""

    def __init__(self, session: _Session) -> None:
        """Take a loaded graph; see ``load``."""
        self._session = session
        self._quick_rows = 0

    @classmethod
    def load(cls, version_dir: Path, *, threads: int = 1) -> Self:
        """Load ``model.onnx`` of a version folder; see ``load`` of this module."""
        return cls(_Session(repository.file_in(version_dir, "model.onnx"), threads))

    @property
    def platform(self) -> str:
        """Triton's word for the kind."""
        return _PLATFORM

    @property
    def signatures(self) -> Mapping[str, Signature]:
        """The one signature that a graph has."""
        return {PREDICT_SIGNATURE: self._session.signature}

    def warm_up(self) -> None:
        """Run zeros through the graph, and see how many rows are quick.

        A graph that does not take zeros is not warmed up, and every call goes to a thread.
        """
        outputs = [spec.name for spec in self._session.signature.outputs]
        for rows in (1, INLINE_ROWS):
            inputs = {
                spec.name: warmup.zeros(spec, rows) for spec in self._session.signature.inputs
            }
            try:
                self._session.run(inputs, outputs)
            except InvalidRows:
                return
            begun_s = time.perf_counter()
            for _ in range(_TIMED_CALLS):
                self._session.run(inputs, outputs)
            if (time.perf_counter() - begun_s) / _TIMED_CALLS > _QUICK_S:
                return
            self._quick_rows = rows

    def is_quick(self, signature_name: str, rows: int) -> bool:
        """Whether the warm-up saw that many rows take no longer than the hop to a thread."""
        return rows <= self._quick_rows

    def run(self, signature_name: str, inputs: Arrays, wanted: Sequence[str]) -> Arrays:
        """Run the graph; see ``Model.run``."""
        outputs = dict(zip(wanted, self._session.run(inputs, wanted), strict=True))
        return {name: _as_sent(values) for name, values in outputs.items()}

    def close(self) -> None:
        """The session's memory goes with the object."""


def _as_sent(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    if values.dtype.kind != "O":
        return values
    data = np.empty(values.size, dtype=object)
    data[:] = [v.encode() if isinstance(v, str) else v for v in values.ravel()]
    return data.reshape(values.shape)


class OnnxTable(Tabular):
    """A graph of float32 columns that gives one score per row.

    The score is the output that ``features.json`` names as ``"score": {"output": …}``, or the only
    one of floats; of a classifier's (n, 2) probabilities it is the second column.
    """

    platform: ClassVar[str] = _PLATFORM

    def __init__(self, session: _Session, features: repository.FeatureList, score: str) -> None:
        """Take a loaded graph and the name of its score; see ``load``."""
        spec = next(spec for spec in session.signature.outputs if spec.name == score)
        two_columns = spec.shape is not None and spec.shape[1:] == (2,)
        super().__init__(features, explains=False, classifies=two_columns)
        self._session = session
        self._input = session.signature.inputs[0].name
        self._score = score

    @classmethod
    def load(cls, version_dir: Path, *, threads: int = 1) -> Self:
        """Load ``model.onnx`` and ``features.json`` of a version folder; see this module's."""
        path = repository.file_in(version_dir, "model.onnx")
        session = _Session(path, threads)
        features = repository.load_features(version_dir)
        _check_input(path, session.signature, len(features.features))
        return cls(session, features, _score_of(path, session.signature, features.score))

    def predict(self, rows: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
        """Score rows.

        Args:
            rows: float32 (n, F); NaN as the graph takes it.

        Returns:
            The score output's values, float64 (n,).

        Raises:
            InvalidRows: Another type, rank or width.
        """
        check_rows(rows, len(self._features.features))
        if not len(rows):
            return np.empty(0, np.float64)
        (values,) = self._session.run({self._input: rows}, [self._score])
        if values.ndim == 2:
            values = values[:, -1]
        return values.astype(np.float64)


def _check_input(path: Path, signature: Signature, columns: int) -> None:
    (spec, *more) = signature.inputs
    if more or spec.dtype != np.float32 or spec.shape is None or len(spec.shape) != 2:
        raise ModelError(f"{path} must take one float32 (n, F) input to go with features.json")
    if spec.shape[1] not in (None, columns):
        raise ModelError(
            f"{path} takes {spec.shape[1]} columns, features.json beside it names {columns}: "
            "write both from one training run"
        )


def _score_of(path: Path, signature: Signature, wanted: str) -> str:
    names = [spec.name for spec in signature.outputs]
    if wanted:
        if wanted not in names:
            raise ModelError(f"{path} has no output {wanted!r}: it has {', '.join(names)}")
        return wanted
    floats = [spec.name for spec in signature.outputs if spec.dtype.kind == "f"]
    if len(floats) != 1:
        raise ModelError(
            f"{path} has the outputs {', '.join(names)}: say which is the score, as "
            '"score": {"output": "NAME"} in features.json'
        )
    return floats[0]
