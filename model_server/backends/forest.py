"""Boosted trees of moderate depth, compiled: the same scores as XGBoost in a fraction of the time.

Every tree is padded to a complete binary tree, so that a row's way down is arithmetic without a
branch: from node ``k`` to ``2k + 1`` or ``2k + 2``. A block of rows goes down one tree together,
which keeps the tree in the first-level cache and the processor's pipeline full. Leaves are added in
XGBoost's own order and precision (float32, tree by tree).

Not every model can be had this way; ``compile_forest`` says which cannot, and checks the outcome
against XGBoost itself.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import xgboost
from numba import njit

from model_server.backends.contributions import MAX_DEPTH, Paths, compile_paths

__all__ = ["Forest", "compile_forest"]

TOLERANCE = 1e-6
CONTRIBUTIONS_TOLERANCE = 1e-4
"""XGBoost adds up its contributions in float32."""

_BLOCK_ROWS = 64
_CHECK_ROWS = 512
_CHECK_EXPLAINED_ROWS = 32

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
        base_margin: What the leaves are added to, log-odds.
        paths: The same trees for contributions; none if these are left to XGBoost.
    """

    features: Uints
    thresholds: Floats
    missing_right: Bools
    leaves: Floats
    base_margin: np.float32
    paths: Paths | None = None

    def predict(self, rows: Floats) -> npt.NDArray[np.float64]:
        """Probabilities of float32 (n, F) rows, float64 (n,); NaN is a missing value."""
        margins = np.empty(len(rows), np.float32)
        _add_leaves(
            self.features,
            self.thresholds,
            self.missing_right,
            self.leaves,
            self.base_margin,
            np.ascontiguousarray(rows),
            bool(np.isnan(rows).any()),
            margins,
        )
        scores = np.float32(1.0) / (np.float32(1.0) + np.exp(-margins))
        return scores.astype(np.float64)


# Unsigned throughout: for a signed index Numba tests whether it counts from the end.
_ONE = np.uint32(1)


@njit(cache=True, nogil=True)
def _descend(block: Floats, column: Uints, threshold: Floats, node: Uints) -> None:
    """Take every row of a block one level down a tree."""
    for n in range(len(block)):
        k = node[n]
        goes_right = block[np.uint32(n), column[k]] >= threshold[k]
        node[n] = k + k + _ONE + np.uint32(goes_right)


@njit(cache=True, nogil=True)
def _descend_missing(
    block: Floats, column: Uints, threshold: Floats, missing_right: Bools, node: Uints
) -> None:
    """The same where values may be missing; twice the time."""
    for n in range(len(block)):
        k = node[n]
        value = block[np.uint32(n), column[k]]
        goes_right = (value >= threshold[k]) | ((value != value) & missing_right[k])
        node[n] = k + k + _ONE + np.uint32(goes_right)


@njit(cache=True, nogil=True)
def _add_leaves(
    features: Uints,
    thresholds: Floats,
    missing_right: Bools,
    leaves: Floats,
    base_margin: np.float32,
    rows: Floats,
    any_missing: bool,
    margins: Floats,
) -> None:
    inner = np.uint32(features.shape[1])
    node = np.empty(_BLOCK_ROWS, np.uint32)
    for begin in range(0, len(rows), _BLOCK_ROWS):
        block, sums = rows[begin : begin + _BLOCK_ROWS], margins[begin : begin + _BLOCK_ROWS]
        sums[:] = base_margin
        for tree in range(len(features)):
            node[:] = 0
            width = _ONE
            while width <= inner:
                if any_missing:
                    _descend_missing(
                        block, features[tree], thresholds[tree], missing_right[tree], node
                    )
                else:
                    _descend(block, features[tree], thresholds[tree], node)
                width += width
            for n in range(len(block)):
                sums[n] += leaves[tree, node[n] - inner]


def compile_forest(booster: xgboost.Booster) -> Forest | None:
    """Compile a booster; None if it is of another kind, or its scores come out differently.

    Categorical splits, dart, several classes or targets, and trees deeper than ``MAX_DEPTH`` are
    left to XGBoost.
    """
    learner = json.loads(bytes(booster.save_raw(raw_format="json")))["learner"]
    if not _is_plain(learner):
        return None
    trees = learner["gradient_booster"]["model"]["trees"]
    depth = max((_depth(tree) for tree in trees), default=0)
    if not trees or depth > MAX_DEPTH:
        return None
    forest = _padded(trees, max(depth, 1), _base_margin(learner))
    rows = _edge_rows(forest, booster.num_features())
    if not _scores_agree(forest, booster, rows):
        return None
    paths = compile_paths(trees)
    return replace(forest, paths=paths) if paths and _paths_agree(paths, booster, rows) else forest


def _is_plain(learner: dict[str, Any]) -> bool:
    booster = learner["gradient_booster"]
    parameters = learner["learner_model_param"]
    return (
        booster["name"] == "gbtree"
        and learner["objective"]["name"] in ("binary:logistic", "reg:logistic")
        and int(parameters["num_class"]) == 0
        and int(parameters.get("num_target", 1)) == 1
        and not any(any(tree["split_type"]) for tree in booster["model"]["trees"])
    )


def _base_margin(learner: dict[str, Any]) -> np.float32:
    score = float(str(learner["learner_model_param"]["base_score"]).strip("[]"))
    return np.float32(-np.log(1.0 / score - 1.0))


def _depth(tree: dict[str, Any]) -> int:
    def below(node: int) -> int:
        left = tree["left_children"][node]
        return 0 if left < 0 else 1 + max(below(left), below(tree["right_children"][node]))

    return below(0)


def _padded(trees: list[dict[str, Any]], depth: int, base_margin: np.float32) -> Forest:
    inner = 2**depth - 1
    shape = len(trees), inner
    forest = Forest(
        np.zeros(shape, np.uint32),
        np.full(shape, np.inf, np.float32),
        np.zeros(shape, np.bool_),
        np.zeros((len(trees), inner + 1), np.float32),
        base_margin,
    )
    for number, tree in enumerate(trees):
        _place(forest, number, tree, 0, 0, depth)
    return forest


def _place(
    forest: Forest, number: int, tree: dict[str, Any], node: int, at: int, levels: int
) -> None:
    """Put a subtree at a place; a leaf above the last level fills all leaves below it."""
    left, value = tree["left_children"][node], tree["split_conditions"][node]
    if left < 0:
        inner = forest.features.shape[1]
        first = (at + 1) * 2**levels - 1 - inner
        forest.leaves[number, first : first + 2**levels] = value
        return
    forest.features[number, at] = tree["split_indices"][node]
    forest.thresholds[number, at] = value
    forest.missing_right[number, at] = not tree["default_left"][node]
    _place(forest, number, tree, left, 2 * at + 1, levels - 1)
    _place(forest, number, tree, tree["right_children"][node], 2 * at + 2, levels - 1)


def _edge_rows(forest: Forest, columns: int) -> Floats:
    """Rows of the trees' own thresholds and of values just below."""
    rng = np.random.default_rng(0)
    rows = np.empty((_CHECK_ROWS, columns), np.float32)
    for column in range(columns):
        edges = forest.thresholds[forest.features == column]
        edges = edges[np.isfinite(edges)]
        pool = np.concatenate([edges, np.nextafter(edges, np.float32(-np.inf)), [0.0, 1.0, np.nan]])
        rows[:, column] = rng.choice(pool, _CHECK_ROWS)
    return rows


def _scores_agree(forest: Forest, booster: xgboost.Booster, rows: Floats) -> bool:
    expected = booster.inplace_predict(rows, missing=np.nan, validate_features=False)
    return bool(np.abs(forest.predict(rows) - expected).max() < TOLERANCE)


def _paths_agree(paths: Paths, booster: xgboost.Booster, rows: Floats) -> bool:
    rows = rows[:_CHECK_EXPLAINED_ROWS]
    matrix = xgboost.DMatrix(rows, missing=np.nan, nthread=1)
    expected = booster.predict(matrix, pred_contribs=True, validate_features=False)[:, :-1]
    limit = CONTRIBUTIONS_TOLERANCE * max(1.0, float(np.abs(expected).max()))
    return bool(np.abs(paths.contributions(rows) - expected).max() < limit)
