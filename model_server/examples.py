"""tf.Example, the input of Classify and Regress, as a model's columns.

A column is a feature of its name with one float or integer. One that is absent or empty is missing
and gets the column's imputed value, as in training. Features that are no column are ignored, as
TensorFlow's own parsing does.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from google.protobuf.message import DecodeError  # type: ignore[import-untyped, unused-ignore]

from model_server.backends.base import (
    PREDICT_SIGNATURE,
    Arrays,
    Method,
    Signature,
    checked_inputs,
)
from model_server.calls import Caller, check_outputs
from model_server.descriptions import METHODS
from model_server.errors import InvalidRequest, ModelError
from model_server.protos import Example
from model_server.repository import FeatureList
from model_server.servables import Servable

__all__ = ["ExampleCalls", "serialized", "to_rows"]


class ExampleCalls:
    """Calls of classify and regress signatures."""

    def __init__(self, caller: Caller) -> None:
        """Let ``caller`` run the models."""
        self._caller = caller

    async def classify(
        self,
        servable: Servable,
        signature_name: str,
        examples: npt.NDArray[Any],
        remaining_s: float | None = None,
    ) -> Arrays:
        """Return ``classes`` and ``scores`` (n, C), or the one of them that the model has.

        Args:
            servable: The model's version.
            signature_name: A signature of it; empty for its default.
            examples: Serialized examples, (n,).
            remaining_s: Seconds that the caller waits for it; for ever if None.

        Raises:
            RequestRefused: The signature is none for this call, or the examples are not right.
            ModelError: The model's outputs do not fit the examples.
        """
        outputs = await self._infer(servable, signature_name, "classify", examples, remaining_s)
        if any(values.ndim != 2 for values in outputs.values()):
            raise ModelError(f"outputs of {servable.name} are not (n, classes)")
        return outputs

    async def regress(
        self,
        servable: Servable,
        signature_name: str,
        examples: npt.NDArray[Any],
        remaining_s: float | None = None,
    ) -> npt.NDArray[Any]:
        """Return a value per example, (n,); see ``classify``."""
        outputs = await self._infer(servable, signature_name, "regress", examples, remaining_s)
        values = next(iter(outputs.values()))
        if len(outputs) != 1 or values.size != len(examples):
            raise ModelError(f"{servable.name} has not one value per example")
        return values.ravel()

    async def _infer(
        self,
        servable: Servable,
        name: str,
        method: Method,
        examples: npt.NDArray[Any],
        remaining_s: float | None,
    ) -> Arrays:
        name, signature = _signature_for(servable, name, method)
        inputs = checked_inputs(signature, {signature.inputs[0].name: examples})
        outputs = await self._caller.run(
            servable, name, inputs, check_outputs(signature, ()), remaining_s=remaining_s
        )
        if any(not values.ndim or len(values) != len(examples) for values in outputs.values()):
            raise ModelError(f"outputs of {servable.name} have not one row per example")
        return outputs


def _signature_for(servable: Servable, name: str, method: Method) -> tuple[str, Signature]:
    """Return the signature that a Classify or Regress means.

    TensorFlow Serving takes ``serving_default`` for no name; our own models, whose default is
    for Predict, have one for each call.
    """
    if not name:
        default = servable.signature(PREDICT_SIGNATURE)
        fits = default.method == method or method not in servable.model.signatures
        name = PREDICT_SIGNATURE if fits else method
    signature = servable.signature(name)
    if signature.method != method:
        kind = "classification" if method == "classify" else "regression"
        raise InvalidRequest(
            f"Expected {kind} signature method_name to be {METHODS}{method}. "
            f"Was: {METHODS}{signature.method}"
        )
    return name, signature


def serialized(examples: Any) -> npt.NDArray[Any]:
    """Return an ``Input`` message's examples as an object array of bytes, (n,).

    A context is merged into each example, whose own features win.

    Raises:
        InvalidRequest: There is no example.
    """
    kind = examples.WhichOneof("kind")
    if kind is None:
        raise InvalidRequest("Input is empty.")
    group = getattr(examples, kind)
    if not group.examples:
        raise InvalidRequest("Input is empty.")
    context = group.context.SerializeToString() if kind == "example_list_with_context" else b""
    array = np.empty(len(group.examples), dtype=object)
    # Messages that are appended are merged: the later map entry of a name wins.
    array[:] = [context + example.SerializeToString() for example in group.examples]
    return array


def to_rows(examples: npt.NDArray[Any], features: FeatureList) -> npt.NDArray[np.float32]:
    """Parse serialized examples into float32 rows (n, F).

    Args:
        examples: bytes, (n,).
        features: The columns.

    Raises:
        InvalidRequest: Not a tf.Example, or a feature that is no single number.
    """
    missing = [np.nan if f.impute is None else f.impute for f in features.features]
    rows = np.tile(np.array(missing, dtype=np.float32), (len(examples), 1))
    for row, data in zip(rows, examples.tolist(), strict=True):
        try:
            values = Example.FromString(data).features.feature
        except (DecodeError, TypeError) as exc:
            raise InvalidRequest("Could not parse example input") from exc
        for column, name in enumerate(features.names):
            if name in values:
                _fill(row, column, name, values[name])
    return rows


def _fill(row: npt.NDArray[np.float32], column: int, name: str, feature: Any) -> None:
    kind = feature.WhichOneof("kind")
    if kind is None:
        return
    if kind == "bytes_list":
        raise InvalidRequest(f"Name: {name}, Data types don't match. Expected type: float")
    numbers = getattr(feature, kind).value
    if len(numbers) > 1:
        raise InvalidRequest(
            f"Key: {name}.  Number of float values != expected.  "
            f"values size: {len(numbers)} but output shape: []"
        )
    if numbers:
        row[column] = numbers[0]
