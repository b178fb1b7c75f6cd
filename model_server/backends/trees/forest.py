"""Boosted trees of moderate depth as arrays: XGBoost's scores in a fraction of the time.

Every tree is padded to a complete binary tree, so that a row's way down is arithmetic without a
branch: from node ``k`` to ``2k + 1`` or ``2k + 2``. Leaves are added in XGBoost's own order and
precision (float32, tree by tree).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from model_server.backends.trees.contributions import Paths
from model_server.backends.trees.native import address, kernels

__all__ = ["Forest"]

_BLOCK_ROWS = 64

Floats = npt.NDArray[np.float32]
Uints = npt.NDArray[np.uint32]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Forest:
    """Complete trees of one depth.

    Attributes:
        features: Column compared at each inner node, uint32 (trees, 2**depth - 1).
        thresholds: A value at or above it goes right, float32, shaped alike.
        missing_right: Whether a missing value goes right, bool, shaped alike.
        leaves: float32 (trees, 2**depth).
        base_margin: What the leaves are added to, log-odds, float32 ().
        paths: The same trees for contributions; none if these are left to XGBoost.
    """

    features: Uints
    thresholds: Floats
    missing_right: Bools
    leaves: Floats
    base_margin: Floats
    paths: Paths | None = None
    _fixed: tuple[float, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Look up once where the arrays lie: it takes longer than to score a row."""
        arrays = (self.features, self.thresholds, self.missing_right, self.leaves)
        fixed = (*map(address, arrays), float(self.base_margin), *self.features.shape)
        object.__setattr__(self, "_fixed", fixed)

    def predict(self, rows: Floats) -> npt.NDArray[np.float64]:
        """Probabilities of float32 (n, F) rows, float64 (n,); NaN is a missing value."""
        rows = np.ascontiguousarray(rows)
        margins = np.empty(len(rows), np.float32)
        node = np.zeros(_BLOCK_ROWS, np.uint32)
        kernels().add_leaves(
            *self._fixed,
            address(rows),
            *rows.shape,
            int(np.isnan(rows).any()),
            address(node),
            address(margins),
        )
        scores = np.float32(1.0) / (np.float32(1.0) + np.exp(-margins))
        return scores.astype(np.float64)
