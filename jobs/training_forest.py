"""An Isolation Forest of scikit-learn, trained on normal rows alone and stored as ONNX.

A row's score is Liu, Ting and Zhou's (Isolation Forest, 2008): ``2 ** (-E(h) / c)`` with the mean
depth ``E(h)`` at which the trees isolate the row and the depth ``c`` of an average row. It lies in
0 to 1: near 0.5 and below is normal, near 1 is isolated at once. It is ``-score_samples`` of
scikit-learn.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import numpy as np

from jobs.environment import NotReadyError
from jobs.settings import TrainingSettings
from udfs.batches.events import FloatArray
from udfs.offline.offline import Progress
from udfs.preparation.encoders import Matrix

SCORE = "score"
"""Name of the graph's output, as ``features.json`` says it."""

OPSET = {"": 17, "ai.onnx.ml": 3}
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

    skl2onnx gives the decision function, ``score_samples - offset_``: its sign is turned and the
    offset taken back.
    """
    skl2onnx, helper, numpy_helper = _converters()
    columns = np.zeros((1, forest.n_features_in_), np.float32)
    model = skl2onnx.to_onnx(forest, columns, target_opset=OPSET)
    graph = model.graph
    decision = next(o.name for o in graph.output if o.name == "scores")
    offset = numpy_helper.from_array(np.array([-forest.offset_], np.float32), "minus_offset")
    graph.initializer.append(offset)
    graph.node.extend(
        [helper.make_node("Sub", ["minus_offset", decision], [SCORE], "anomaly_score")]
    )
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info(SCORE, 1, [None, 1]))  # 1: float32
    return model


def _sklearn() -> ModuleType:
    try:
        from sklearn import ensemble
    except ImportError as exc:
        raise _missing() from exc
    module: ModuleType = ensemble
    return module


def _converters() -> tuple[ModuleType, ModuleType, ModuleType]:
    try:
        import skl2onnx
        from onnx import helper, numpy_helper
    except ImportError as exc:
        raise _missing() from exc
    return skl2onnx, helper, numpy_helper


def _missing() -> NotReadyError:
    return NotReadyError(
        "training an isolation_forest needs scikit-learn and skl2onnx",
        "run: make setup EXTRA=forest",
    )
