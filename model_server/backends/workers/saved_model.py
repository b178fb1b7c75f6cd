"""TensorFlow's SavedModels."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from model_server.backends.base import Arrays, Method, Signature, TensorSpec
from model_server.backends.workers.serving import serve
from model_server.errors import InvalidRows, ModelError

_METHODS: dict[str, Method] = {
    "tensorflow/serving/classify": "classify",
    "tensorflow/serving/regress": "regress",
}
_INIT = "__saved_model_init_op"


class SavedModel:
    """The signatures of one folder that has ``saved_model.pb``."""

    def __init__(self, folder: Path, threads: int) -> None:
        """Load it.

        Args:
            folder: The version's.
            threads: Of one call.
        """
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
        try:
            import tensorflow  # type: ignore[import-not-found, unused-ignore]
        except ImportError as exc:
            raise ModelError(
                "a SavedModel needs TensorFlow: make setup EXTRA=tensorflow, or name an "
                "interpreter that has it as model_python"
            ) from exc
        self._tf: Any = tensorflow
        self._tf.config.threading.set_intra_op_parallelism_threads(threads)
        self._tf.config.threading.set_inter_op_parallelism_threads(1)
        self._loaded = self._tf.saved_model.load(str(folder))  # kept: it owns the variables
        self._functions = {
            name: function for name, function in self._loaded.signatures.items() if name != _INIT
        }
        methods = _methods(folder)
        self.signatures = {
            name: Signature(
                _specs(function.structured_input_signature[1]),
                _specs(function.structured_outputs),
                methods.get(name, "predict"),
            )
            for name, function in self._functions.items()
        }
        if "serving_default" not in self.signatures:
            raise ModelError(f"no signature serving_default: it has {sorted(self.signatures)}")

    def run(self, signature_name: str, inputs: Arrays, wanted: Sequence[str]) -> Arrays:
        """See ``backends.base.Model``."""
        function = self._functions[signature_name]
        specs = function.structured_input_signature[1]
        tensors = {
            name: self._tf.cast(array, specs[name].dtype)  # bfloat16 comes as float32
            if specs[name].dtype == self._tf.bfloat16
            else self._tf.constant(array)
            for name, array in inputs.items()
        }
        try:
            outputs = function(**tensors)
        except self._tf.errors.InvalidArgumentError as exc:
            raise InvalidRows(f"the model cannot take these values: {exc.message}") from exc
        return {name: _array(outputs[name]) for name in wanted}


def _methods(folder: Path) -> dict[str, Method]:
    from tensorflow.core.protobuf import (  # type: ignore[import-not-found, unused-ignore]
        saved_model_pb2,
    )

    message = saved_model_pb2.SavedModel()
    message.ParseFromString((folder / "saved_model.pb").read_bytes())
    return {
        name: _METHODS[definition.method_name]
        for graph in message.meta_graphs
        for name, definition in graph.signature_def.items()
        if definition.method_name in _METHODS
    }


def _specs(specs: dict[str, Any]) -> tuple[TensorSpec, ...]:
    return tuple(_spec(name, spec) for name, spec in sorted(specs.items()))


def _spec(name: str, spec: Any) -> TensorSpec:
    kind = spec.dtype
    if kind.name == "string":
        dtype: np.dtype[Any] = np.dtype(object)
    elif kind.name == "bfloat16":
        dtype = np.dtype(np.float32)  # NumPy has none
    else:
        dtype = np.dtype(kind.as_numpy_dtype)
    shape = None if spec.shape.rank is None else tuple(spec.shape.as_list())
    return TensorSpec(name, dtype, shape)


def _array(tensor: Any) -> Any:
    if tensor.dtype.name == "bfloat16":
        return tensor.numpy().astype(np.float32)
    value = tensor.numpy()
    # Not by way of NumPy's strings, which lose zero bytes at the end.
    return np.array(value, object) if isinstance(value, bytes) else np.asarray(value)


if __name__ == "__main__":
    serve(SavedModel, sys.argv[1:])
