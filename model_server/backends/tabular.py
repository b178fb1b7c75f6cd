"""Models of float32 columns and one score per row, and the signatures they are served by.

===================  ===========================================  ===============================
signature            input                                        outputs
===================  ===========================================  ===============================
``serving_default``  ``inputs`` float32 (n, F)                    ``scores`` float32 (n,)
``explain``          ``inputs`` float32 (n, F)                    ``contributions`` float32 (n, F)
``classify``         ``inputs`` serialized tf.Example, (n,)       ``classes``, ``scores``, (n, 2)
``regress``          ``inputs`` serialized tf.Example, (n,)       ``outputs`` float32 (n,)
===================  ===========================================  ===============================

``explain`` and ``classify`` are there if the model can.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

from model_server import warmup
from model_server.backends.base import PREDICT_SIGNATURE, Arrays, Signature, TensorSpec
from model_server.errors import InvalidRequest
from model_server.repository import FeatureList

__all__ = [
    "CLASSIFY_SIGNATURE",
    "CONTRIBUTIONS_OUTPUT",
    "EXPLAIN_SIGNATURE",
    "INLINE_ROWS",
    "INPUT_NAME",
    "REGRESS_SIGNATURE",
    "SCORES_OUTPUT",
    "Tabular",
]

EXPLAIN_SIGNATURE = "explain"
CLASSIFY_SIGNATURE = "classify"
REGRESS_SIGNATURE = "regress"
INPUT_NAME = "inputs"
SCORES_OUTPUT = "scores"
CONTRIBUTIONS_OUTPUT = "contributions"

#: Largest batch scored on the event loop's own thread. Measured behind grpc.aio, 100 trees of
#: depth 6, 2 cores shared with the client: the hop to a thread costs about 60 us, so 1 row takes
#: 0.62 ms on the loop against 0.67 in the pool, 32 rows 0.64 against 0.71. From some hundred rows
#: on XGBoost, which releases the GIL, outweighs the hop: 512 rows from 4 callers give 1,530 calls/s
#: in the pool, 1,040 on the loop. Contributions cost a hundred times more: always in the pool.
INLINE_ROWS = 64

_CLASSES = np.array([b"0", b"1"], dtype=object)
_FLOAT = np.dtype(np.float32)
_STRING = np.dtype(object)


class Tabular(ABC):
    """Serves ``predict`` and ``explain`` of a subclass under the signatures above."""

    platform: ClassVar[str]

    def __init__(self, features: FeatureList, *, explains: bool, classifies: bool) -> None:
        """Keep the columns.

        Args:
            features: The input's columns.
            explains: Whether ``explain`` can be called.
            classifies: Whether a score is the probability of class 1.
        """
        self._features = features
        self._signatures = _signatures(len(features.features), explains, classifies)

    @property
    def explains(self) -> bool:
        """Whether ``explain`` can be called."""
        return EXPLAIN_SIGNATURE in self._signatures

    @property
    def feature_names(self) -> tuple[str, ...]:
        """Names of the input's columns, in order."""
        return self._features.names

    @property
    def features(self) -> FeatureList:
        """The columns with their imputed values, and the hash of their configuration."""
        return self._features

    @property
    def signatures(self) -> Mapping[str, Signature]:
        """Signatures by name."""
        return self._signatures

    @classmethod
    @abstractmethod
    def load(cls, version_dir: Path, *, threads: int = 1) -> Self:
        """Load a version folder; see ``TabularModel.load``."""

    @abstractmethod
    def predict(self, rows: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
        """Score float32 (n, F) rows, float64 (n,)."""

    def explain(self, rows: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
        """Contributions of the columns to the scores, float64 (n, F)."""
        raise NotImplementedError(f"{type(self).__name__} cannot explain")

    def warm_up(self) -> None:
        """Run dummy batches through ``predict``, and ``explain`` if there is one."""
        warmup.run(self, explain=EXPLAIN_SIGNATURE in self._signatures)

    def is_quick(self, signature_name: str, rows: int) -> bool:
        """Whether a call takes less time than the hop to another thread."""
        return signature_name != EXPLAIN_SIGNATURE and rows <= INLINE_ROWS

    def run(self, signature_name: str, inputs: Arrays, wanted: Sequence[str]) -> Arrays:
        """Call a signature; see ``Model.run``."""
        values = inputs[INPUT_NAME]
        if signature_name == PREDICT_SIGNATURE:
            return {SCORES_OUTPUT: self.predict(values).astype(np.float32)}
        if signature_name == EXPLAIN_SIGNATURE:
            return {CONTRIBUTIONS_OUTPUT: self.explain(values).astype(np.float32)}
        scores = self.predict(self._rows_of(values)).astype(np.float32)
        outputs: dict[str, npt.NDArray[Any]] = {"outputs": scores}
        if signature_name == CLASSIFY_SIGNATURE:
            outputs = {
                "classes": np.tile(_CLASSES, (len(scores), 1)),
                SCORES_OUTPUT: np.column_stack([1 - scores, scores]),
            }
        return {name: outputs[name] for name in wanted}

    def joined(self, columns: Arrays) -> npt.NDArray[np.float32]:
        """Put a table that came as one tensor per column together.

        Args:
            columns: Numbers by the name of the column, (n,) or (n, 1). A column that is absent
                and a NaN get the imputed value, as in training.

        Raises:
            InvalidRequest: A column is none of the model, holds no numbers, or they have unequal
                numbers of rows.
        """
        for name in sorted(columns.keys() - set(self.feature_names)):
            near = get_close_matches(name, self.feature_names, n=1)
            hint = f"did you mean {near[0]}?" if near else f"its first is {self.feature_names[0]}"
            raise InvalidRequest(f"the model has no column {name}: {hint}")
        rows = {array.size for array in columns.values()}
        if len(rows) != 1 or any(not _is_column(array) for array in columns.values()):
            raise InvalidRequest("columns must be numbers of shape (n,) or (n, 1), all of one n")
        table = np.empty((rows.pop(), len(self.feature_names)), np.float32)
        for index, feature in enumerate(self._features.features):
            column = columns.get(feature.name, np.float64(np.nan))
            table[:, index] = np.ravel(column)
            if feature.impute is not None:
                table[np.isnan(table[:, index]), index] = feature.impute
        return table

    def close(self) -> None:  # noqa: B027 - most hold nothing
        """Nothing is held but memory."""

    def _rows_of(self, serialized: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        # Here, for an operator that embeds a model has no use for TensorFlow's messages.
        from model_server.examples import to_rows

        return to_rows(serialized, self._features)


def _is_column(array: npt.NDArray[Any]) -> bool:
    return array.dtype.kind in "fiub" and array.shape in ((array.size,), (array.size, 1))


def _signatures(columns: int, explains: bool, classifies: bool) -> Mapping[str, Signature]:
    """Scores are float32 on the wire: tree ensembles compute no more than that."""
    rows = (TensorSpec(INPUT_NAME, _FLOAT, (None, columns)),)
    examples = (TensorSpec(INPUT_NAME, _STRING, (None,)),)
    scores = TensorSpec(SCORES_OUTPUT, _FLOAT, (None,))
    signatures = {
        PREDICT_SIGNATURE: Signature(rows, (scores,)),
        REGRESS_SIGNATURE: Signature(
            examples, (TensorSpec("outputs", _FLOAT, (None,)),), "regress"
        ),
    }
    if explains:
        contributions = TensorSpec(CONTRIBUTIONS_OUTPUT, _FLOAT, (None, columns))
        signatures[EXPLAIN_SIGNATURE] = Signature(rows, (contributions,))
    if classifies:
        signatures[CLASSIFY_SIGNATURE] = Signature(
            examples,
            (
                TensorSpec("classes", _STRING, (None, len(_CLASSES))),
                TensorSpec(SCORES_OUTPUT, _FLOAT, (None, len(_CLASSES))),
            ),
            "classify",
        )
    return signatures
