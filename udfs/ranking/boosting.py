"""The light ranking model: boosted trees of one probability per candidate."""

from __future__ import annotations

from dataclasses import dataclass

import xgboost

from udfs.ranking.examples import Examples, Progress
from udfs.ranking.features import FEATURES

__all__ = ["TreeOptions", "fit_trees"]

_LEAST_LEAF = 5.0  # sum of p (1 - p): some 100 rows where 5 % are bought


@dataclass(frozen=True, slots=True)
class TreeOptions:
    """How trees are fitted.

    Attributes:
        trees: Boosting rounds.
        depth: Of a tree.
        learning_rate: Shrinkage of each tree.
        seed: Of the library.
    """

    trees: int
    depth: int
    learning_rate: float
    seed: int


def fit_trees(examples: Examples, options: TreeOptions, progress: Progress) -> xgboost.Booster:
    """Fit a booster of ``binary:logistic`` on the examples, columns named as in ``FEATURES``."""
    matrix = xgboost.QuantileDMatrix(
        examples.features, examples.labels, feature_names=list(FEATURES), nthread=0
    )
    parameters = {
        "objective": "binary:logistic",
        "tree_method": "hist",
        "max_depth": options.depth,
        "learning_rate": options.learning_rate,
        "min_child_weight": _LEAST_LEAF,
        "seed": options.seed,
        "nthread": 0,  # all cores
    }
    booster = xgboost.Booster(parameters, [matrix])
    for tree in range(options.trees):
        booster.update(matrix, tree)
        progress("Training", (tree + 1) / options.trees)
    return booster
