"""Writes the ranking network as ONNX, from its weights."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

__all__ = ["OnnxMissing", "write_onnx"]

_OPSET = 17
_IR_VERSION = 8


class OnnxMissing(RuntimeError):
    """The package ``onnx`` is not installed."""


def write_onnx(weights: dict[str, Any], path: Path) -> None:
    """Write a network of one float32 ``inputs`` (n, F) and ``scores`` (n,).

    Args:
        weights: As in ``Network``; the last layer has one column and a sigmoid.
        path: The file.

    Raises:
        OnnxMissing: The package is not there.
    """
    helper, tensors = _modules()
    nodes = [
        helper.make_node("IsNaN", ["inputs"], ["missing"]),
        helper.make_node("Where", ["missing", "mean", "inputs"], ["filled"]),
        helper.make_node("Sub", ["filled", "mean"], ["centred"]),
        helper.make_node("Mul", ["centred", "inverse"], ["scaled"]),
        helper.make_node("Clip", ["scaled", "lowest", "highest"], ["clipped"]),
        helper.make_node("Cast", ["missing"], ["flags"], to=1),
        helper.make_node("Concat", ["clipped", "flags"], ["layer_0"], axis=1),
    ]
    layers = sum(name.startswith("weights_") for name in weights)
    for n in range(layers):
        last = n == layers - 1
        inputs = [f"layer_{n}", f"weights_{n}", f"biases_{n}"]
        nodes.append(helper.make_node("Gemm", inputs, [f"sum_{n}"]))
        kind = "Sigmoid" if last else "Relu"
        nodes.append(helper.make_node(kind, [f"sum_{n}"], [f"layer_{n + 1}"]))
    nodes.append(helper.make_node("Squeeze", [f"layer_{layers}", "last_axis"], ["scores"]))
    limit = np.float32(weights["limit"])
    constants = {name: array for name, array in weights.items() if name != "limit"}
    constants |= {"lowest": -limit, "highest": limit, "last_axis": np.array([1], np.int64)}
    graph = helper.make_graph(
        nodes,
        "ranking",
        [helper.make_tensor_value_info("inputs", 1, ["n", len(weights["mean"])])],
        [helper.make_tensor_value_info("scores", 1, ["n"])],
        [tensors.from_array(np.asarray(array), name) for name, array in constants.items()],
    )
    opsets = [helper.make_opsetid("", _OPSET)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=_IR_VERSION)
    path.write_bytes(model.SerializeToString())


def _modules() -> tuple[ModuleType, ModuleType]:
    try:
        from onnx import helper, numpy_helper
    except ImportError as exc:
        raise OnnxMissing(
            "a network is written with the package onnx: make setup EXTRA=tensorflow, or "
            "pip install onnx"
        ) from exc
    return helper, numpy_helper
