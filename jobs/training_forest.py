"""An Isolation Forest of scikit-learn, trained on normal rows alone and stored as ONNX.

A row's score is Liu, Ting and Zhou's (Isolation Forest, 2008): ``2 ** (-E(h) / c)`` with the mean
depth ``E(h)`` at which the trees isolate the row and the depth ``c`` of an average row. It lies in
0 to 1: near 0.5 and below is normal, near 1 is isolated at once. It is ``-score_samples`` of
scikit-learn.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from jobs.environment import NotReadyError
from jobs.sections.training import TrainingSettings
from udfs.batches.events import FloatArray, IntArray
from udfs.offline.offline import Progress
from udfs.preparation.encoders import Matrix

SCORE = "score"
"""Name of the graph's output, as ``features.json`` says it."""

OPSET = {"": 17, "ai.onnx.ml": 3}
_IR_VERSION = 8
QUANTILES = (0.5, 0.9, 0.95, 0.99, 0.999)


class IsolationTrees:
    """A forest as ``train`` needs it; see ``jobs.training.Trainable``."""

    skips_blank: ClassVar[bool] = True

    def __init__(self, forest: Any, normal_scores: FloatArray) -> None:
        """Take a fitted forest and its scores of the rows it was fitted to; see ``fit``."""
        self._forest = forest
        self._normal_scores = normal_scores

    @classmethod
    def fit(
        cls,
        training: TrainingSettings,
        columns: tuple[str, ...],
        matrix: Matrix,
        labels: FloatArray,
        progress: Progress,
    ) -> IsolationTrees:
        """See ``jobs.training.Trainable``; only rows of label 0 are looked at."""
        normal = matrix[labels == 0]
        forest = _sklearn().IsolationForest(
            n_estimators=training.trees,
            max_samples=min(training.max_samples, len(normal)),
            random_state=training.seed,
        )
        progress("Training", 0.0)
        forest.fit(normal)
        progress("Training", 1.0)
        return cls(forest, -forest.score_samples(normal))

    def scores(self, matrix: Matrix) -> FloatArray:
        """See ``jobs.training.Trainable``."""
        return np.asarray(-self._forest.score_samples(matrix), np.float64)

    def about(self) -> dict[str, Any]:
        """``normal_scores``: quantiles of the scores of the rows trained on."""
        found = np.quantile(self._normal_scores, QUANTILES).tolist()
        return {
            "normal_rows": len(self._normal_scores),
            "normal_scores": {
                f"{part:g}": round(value, 6) for part, value in zip(QUANTILES, found, strict=True)
            },
        }

    def save(self, folder: Path) -> dict[str, Any]:
        """See ``jobs.training.Trainable``."""
        (folder / "model.onnx").write_bytes(onnx_graph(self._forest).SerializeToString())
        return {"score": {"output": SCORE}}


def onnx_graph(forest: Any) -> Any:
    """The forest as an ONNX model with one output, ``score``, float32 (n, 1).

    All trees are one node whose leaves hold the path lengths: ONNX Runtime goes through it in a
    tenth of the time of what skl2onnx makes, which looks each tree's lengths up apart.
    """
    helper, numpy_helper = _onnx()
    mean_length = average_path_length([forest.max_samples_])[0]
    scale = np.array([-1.0 / (len(forest.estimators_) * mean_length)], np.float32)
    constants = {"scale": scale, "two": np.array([2.0], np.float32)}
    trees = helper.make_node(
        "TreeEnsembleRegressor",
        ["rows"],
        ["lengths"],
        "trees",
        domain="ai.onnx.ml",
        n_targets=1,
        aggregate_function="SUM",
        **_trees([tree.tree_ for tree in forest.estimators_]),
    )
    graph = helper.make_graph(
        [
            trees,
            helper.make_node("Mul", ["lengths", "scale"], ["exponents"]),
            helper.make_node("Pow", ["two", "exponents"], [SCORE]),
        ],
        "isolation_forest",
        [helper.make_tensor_value_info("rows", 1, [None, forest.n_features_in_])],  # 1: float32
        [helper.make_tensor_value_info(SCORE, 1, [None, 1])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    opsets = [helper.make_opsetid(domain, version) for domain, version in OPSET.items()]
    return helper.make_model(graph, opset_imports=opsets, ir_version=_IR_VERSION)


def average_path_length(samples: npt.ArrayLike) -> FloatArray:
    """The depth of an average row in a tree of so many, ``c(n)`` of Liu, Ting and Zhou (2008)."""
    n = np.asarray(samples, np.float64)
    many = np.maximum(n, 3.0)
    lengths = 2.0 * (np.log(many - 1.0) + np.euler_gamma) - 2.0 * (many - 1.0) / many
    return np.where(n > 2, lengths, (n == 2).astype(np.float64))


def _trees(trees: Sequence[Any]) -> dict[str, list[Any]]:
    """The attributes of a TreeEnsembleRegressor: a leaf's weight is its rows' path length."""
    columns: dict[str, list[Any]] = defaultdict(list)
    for number, tree in enumerate(trees):
        n, is_leaf = tree.node_count, tree.children_left < 0
        columns["nodes_treeids"] += [number] * n
        columns["nodes_nodeids"] += range(n)
        columns["nodes_modes"] += ["LEAF" if leaf else "BRANCH_LEQ" for leaf in is_leaf.tolist()]
        columns["nodes_featureids"] += np.where(is_leaf, 0, tree.feature).tolist()
        columns["nodes_values"] += np.where(is_leaf, 0.0, _below(tree.threshold)).tolist()
        columns["nodes_truenodeids"] += np.where(is_leaf, 0, tree.children_left).tolist()
        columns["nodes_falsenodeids"] += np.where(is_leaf, 0, tree.children_right).tolist()
        leaves = np.flatnonzero(is_leaf)
        lengths = _depths(tree)[leaves] + average_path_length(tree.n_node_samples[leaves])
        columns["target_treeids"] += [number] * len(leaves)
        columns["target_nodeids"] += leaves.tolist()
        columns["target_ids"] += [0] * len(leaves)
        columns["target_weights"] += lengths.tolist()
    return columns


def _depths(tree: Any) -> IntArray:
    """How many branches lie above each node, int64 (nodes,); a child follows its parent."""
    depths = np.zeros(tree.node_count, np.int64)
    for node in np.flatnonzero(tree.children_left >= 0).tolist():
        depths[[tree.children_left[node], tree.children_right[node]]] = depths[node] + 1
    return depths


def _below(thresholds: FloatArray) -> npt.NDArray[np.float32]:
    """The nearest float32 not above: ``x <= threshold`` stays as it is for each float32 ``x``."""
    nearest = thresholds.astype(np.float32)
    return np.where(nearest > thresholds, np.nextafter(nearest, np.float32(-np.inf)), nearest)


def _sklearn() -> ModuleType:
    try:
        from sklearn import ensemble
    except ImportError as exc:
        raise _missing() from exc
    module: ModuleType = ensemble
    return module


def _onnx() -> tuple[ModuleType, ModuleType]:
    try:
        from onnx import helper, numpy_helper
    except ImportError as exc:
        raise _missing() from exc
    return helper, numpy_helper


def _missing() -> NotReadyError:
    return NotReadyError(
        "training an isolation_forest needs scikit-learn and onnx",
        "run: make setup EXTRA=forest",
    )
