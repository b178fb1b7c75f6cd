"""What XGBoost answers to rows on the edges of a model's splits, to compare compiled trees with."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from model_server.backends.trees.contributions import Paths
from model_server.backends.trees.forest import Forest

__all__ = ["TOLERANCE", "Compiled", "Sample"]

TOLERANCE = 1e-6
CONTRIBUTIONS_TOLERANCE = 1e-4
"""XGBoost adds up its contributions in float32."""

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Sample:
    """Rows and XGBoost's answers.

    Attributes:
        rows: float32 (n, F).
        scores: Of all rows, float32 (n,).
        contributions: Of the first rows, float32 (m, F).
    """

    rows: Floats
    scores: Floats
    contributions: Floats

    def scores_agree(self, forest: Forest) -> bool:
        """Whether a forest's scores differ by less than ``TOLERANCE``."""
        return bool(np.abs(forest.predict(self.rows) - self.scores).max() < TOLERANCE)

    def contributions_agree(self, paths: Paths) -> bool:
        """Whether contributions differ by less than float32 sums may."""
        found = paths.contributions(self.rows[: len(self.contributions)])
        limit = CONTRIBUTIONS_TOLERANCE * max(1.0, float(np.abs(self.contributions).max()))
        return bool(np.abs(found - self.contributions).max() < limit)


@dataclass(frozen=True)
class Compiled:
    """A forest that is not compared yet.

    Attributes:
        forest: The trees.
        sample: What XGBoost answers.
    """

    forest: Forest
    sample: Sample

    def checked(self) -> Forest | None:
        """Return the forest if its scores agree; without paths if their contributions do not."""
        forest = self.forest
        if not self.sample.scores_agree(forest):
            return None
        if forest.paths is None or self.sample.contributions_agree(forest.paths):
            return forest
        return replace(forest, paths=None)
