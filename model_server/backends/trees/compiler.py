"""From an XGBoost booster to arrays.

Not every model can be had this way: ``compile_booster`` says which cannot. What it makes comes with
a sample of XGBoost's own answers, for whoever will answer with it to compare.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import numpy.typing as npt
import xgboost

from model_server.backends.trees.contributions import MAX_DEPTH, Paths, T
from model_server.backends.trees.forest import Forest
from model_server.backends.trees.sample import Compiled, Sample

__all__ = ["compile_booster", "compile_paths"]

_SAMPLE_ROWS = 512
_EXPLAINED_ROWS = 16
_LEAF = -1

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]


def compile_booster(booster: xgboost.Booster) -> Compiled | None:
    """Compile a booster; None if it is of another kind.

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
    forest = _padded(trees, max(depth, 1), _base_margin(learner), compile_paths(trees))
    if forest.features.max() >= booster.num_features():  # the loops would read beyond the rows
        return None
    return Compiled(forest, _sample(booster, forest))


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


def _base_margin(learner: dict[str, Any]) -> Floats:
    score = float(str(learner["learner_model_param"]["base_score"]).strip("[]"))
    return np.array(-np.log(1.0 / score - 1.0), np.float32)


def _depth(tree: dict[str, Any]) -> int:
    left, right = tree["left_children"], tree["right_children"]

    def below(node: int) -> int:
        return 0 if left[node] < 0 else 1 + max(below(left[node]), below(right[node]))

    return below(0)


def _padded(
    trees: list[dict[str, Any]], depth: int, base_margin: Floats, paths: Paths | None
) -> Forest:
    inner = 2**depth - 1
    shape = len(trees), inner
    forest = Forest(
        np.zeros(shape, np.uint32),
        np.full(shape, np.inf, np.float32),
        np.zeros(shape, np.bool_),
        np.zeros((len(trees), inner + 1), np.float32),
        base_margin,
        paths,
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


def _sample(booster: xgboost.Booster, forest: Forest) -> Sample:
    rows = _edge_rows(forest, booster.num_features())
    scores = booster.inplace_predict(rows, missing=np.nan, validate_features=False)
    matrix = xgboost.DMatrix(rows[:_EXPLAINED_ROWS], missing=np.nan, nthread=1)
    shares = booster.predict(matrix, pred_contribs=True, validate_features=False)[:, :-1]
    return Sample(rows, np.asarray(scores), np.asarray(shares))


def _edge_rows(forest: Forest, columns: int) -> Floats:
    """Rows of the trees' own thresholds and of values just below."""
    rng = np.random.default_rng(0)
    rows = np.empty((_SAMPLE_ROWS, columns), np.float32)
    for column in range(columns):
        edges = forest.thresholds[forest.features == column]
        edges = edges[np.isfinite(edges)]
        pool = np.concatenate([edges, np.nextafter(edges, np.float32(-np.inf)), [0.0, 1.0, np.nan]])
        rows[:, column] = rng.choice(pool, _SAMPLE_ROWS)
    return rows


def compile_paths(trees: list[dict[str, Any]]) -> Paths | None:
    """Compile the trees of an XGBoost model; None if one of their splits has no weight on a side.

    Args:
        trees: As XGBoost's JSON has them, none deeper than ``MAX_DEPTH``, no categorical splits.
    """
    nodes = sum(len(tree["left_children"]) for tree in trees)
    draft = _Draft(nodes)
    roots = np.zeros(len(trees) + 1, np.int32)
    for number, tree in enumerate(trees):
        draft.append(tree, 0, {}, int(roots[number]))
        roots[number + 1] = (
            draft.count
        )  # not of all its nodes: pruning leaves some that none leads to
    draft.trim()
    before, share = np.array(draft.shares).T
    if not (share > 0.0).all():
        return None
    first = np.array(draft.earlier) == np.repeat(roots[:-1], np.diff(roots))
    return Paths(
        roots,
        np.array(draft.columns, np.int32),
        np.array(draft.values, np.float32),
        np.array(draft.missing_right, np.bool_),
        np.array(draft.children, np.int32),
        np.array(draft.earlier, np.int32),
        _steps(before, share, first),
    )


class _Draft:
    """All trees' nodes as lists, appended depth first; their names are those of ``Paths``.

    Attributes:
        count: Nodes that are appended.
        shares: Share of the training weight that follows the earlier splits on the column of a
            node's incoming split, and the share that follows this one as well.
    """

    def __init__(self, nodes: int) -> None:
        self.columns = [_LEAF] * nodes
        self.values = [0.0] * nodes
        self.missing_right = [False] * nodes
        self.children = [(0, 0)] * nodes
        self.earlier = [0] * nodes
        self.shares = [(1.0, 1.0)] * nodes
        self.count = 0

    def trim(self) -> None:
        """Forget the room that no node took."""
        for nodes in (self.columns, self.values, self.missing_right, self.children, self.earlier):
            del nodes[self.count :]
        del self.shares[self.count :]

    def append(
        self, tree: dict[str, Any], source: int, seen: dict[int, tuple[int, float]], root: int
    ) -> int:
        """Append a subtree; returns where its own node went.

        Args:
            tree: As XGBoost's JSON has it.
            source: The node in the tree.
            seen: By column, the last node on the way here whose incoming split is on it, and the
                share of the training weight that follows all the path's splits on it.
            root: Where the tree's root went.
        """
        target = self.count
        self.count += 1
        if source == 0:
            self.earlier[target] = root
        self.values[target] = tree["split_conditions"][source]
        left, right = tree["left_children"][source], tree["right_children"][source]
        if left < 0:
            return target
        column = tree["split_indices"][source]
        self.columns[target] = column
        self.missing_right[target] = not tree["default_left"][source]
        before, share = seen.get(column, (root, 1.0))
        weight = tree["sum_hessian"]
        places = []
        for child in (left, right):
            below = share * weight[child] / weight[source] if weight[source] else 0.0
            at = self.count
            self.earlier[at] = before
            self.shares[at] = share, below
            places.append(self.append(tree, child, seen | {column: (at, below)}, root))
        self.children[target] = places[0], places[1]
        return target


def _steps(before: Doubles, share: Doubles, first: npt.NDArray[np.bool_]) -> Floats:
    """``Paths.steps`` of nodes.

    Args:
        before: Share of the training weight that follows the earlier splits on the column of a
            node's incoming split, (nodes,).
        share: And this one as well; above 0.
        first: Whether it is the column's first on the path: no factor is replaced.
    """
    before, share, first = before[:, None], share[:, None], first[:, None]
    left = np.where(first, 1.0, before * (1.0 - T))
    follows_before = np.where(first, 1.0, before * (1.0 - T) + T)
    leaves, follows = share * (1.0 - T), share * (1.0 - T) + T
    old = (1.0 - before) / follows_before
    states = [
        [leaves / left, (0.0 - share) / leaves - (0.0 - before) / left],
        [leaves / follows_before, (0.0 - share) / leaves - old],
        [follows / follows_before, (1.0 - share) / follows - old],
    ]
    return np.array(states, np.float32).transpose(2, 0, 1, 3).copy()
