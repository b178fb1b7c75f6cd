"""Exact SHAP contributions of boosted trees, compiled: some ten times faster than XGBoost's own.

A feature's Shapley value in a tree is an integral (Owen's multilinear extension, 1972). For a leaf
of value ``v`` whose path splits on the features ``P``::

    phi_j = v (o_j - z_j) * integral over t in [0, 1] of  prod over k in P, k != j  of  f_k(t)
    f_k(t) = o_k t + z_k (1 - t)

``o_k`` is 1 if the row follows all of the path's splits on ``k``, else 0; ``z_k`` is the share of
the training weight that does. The product is a polynomial of degree ``|P| - 1``, so Gauss-Legendre
quadrature with ``|P| / 2`` points is exact. The products are carried down the tree at those points
and the leaves' values added up on the way back: linear in the nodes, where the usual algorithm
(Lundberg et al. 2018, which XGBoost has) takes the square of the depth for each leaf.

Where a feature is split on again further down, its factor is replaced by the new one, and what the
old factor would have contributed below that split is taken off again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

__all__ = ["MAX_DEPTH", "Paths", "compile_paths"]

MAX_DEPTH = 8
"""Deeper trees need more points, and a complete binary tree more leaves than it is worth."""

_POINTS = MAX_DEPTH // 2
_LEAF = -1
_LEAVES, _FOLLOWS = 1, 2

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int32]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Paths:
    """The nodes of all trees, one after the other, parents first.

    What a row is to the splits on one column so far is one of three states: it left the path at an
    earlier one (0), leaves it at this one (1), follows all (2).

    Attributes:
        roots: First node of each tree, and the end of the last; int32 (trees + 1,).
        columns: Column split on at each node, -1 at a leaf; int32 (nodes,).
        values: Threshold of a split (a value at or above it goes right), or value of a leaf;
            float32 (nodes,).
        missing_right: Whether a missing value goes right; bool (nodes,).
        children: Left and right child; int32 (nodes, 2).
        earlier: The node whose incoming split was the last one on the same column as this node's
            incoming split, further up; the root if there is none; int32 (nodes,).
        steps: By state, at the points: what a node's incoming split multiplies the product by, and
            what the product below it then adds to the column; float32 (nodes, 3, 2, points).
    """

    roots: Ints
    columns: Ints
    values: Floats
    missing_right: Bools
    children: Ints
    earlier: Ints
    steps: Floats

    def contributions(self, rows: Floats) -> Doubles:
        """Each column's contribution to the log-odds of each row.

        Args:
            rows: float32 (n, F); NaN is a missing value.

        Returns:
            float64 (n, F).
        """
        found = np.zeros(rows.shape, np.float64)
        _add_contributions(
            self.roots,
            self.columns,
            self.values,
            self.missing_right,
            self.children,
            self.earlier,
            self.steps,
            _WEIGHTS,
            np.ascontiguousarray(rows),
            found,
        )
        return found


def _quadrature() -> tuple[Doubles, Doubles]:
    """Points and weights of Gauss-Legendre quadrature on [0, 1]."""
    points, weights = np.polynomial.legendre.leggauss(_POINTS)  # type: ignore[no-untyped-call]
    return (points + 1.0) / 2.0, weights / 2.0


_T, _WEIGHTS = _quadrature()


# Additions may be reordered: else no two points could be summed at once.
@njit(cache=True, nogil=True, fastmath={"reassoc", "contract", "nsz"})
def _add_contributions(
    roots: Ints,
    columns: Ints,
    values: Floats,
    missing_right: Bools,
    children: Ints,
    earlier: Ints,
    steps: Floats,
    weights: Doubles,
    rows: Floats,
    found: Doubles,
) -> None:
    largest = 0
    for tree in range(len(roots) - 1):
        largest = max(largest, roots[tree + 1] - roots[tree])
    product = np.empty((largest, _POINTS))
    state = np.empty(largest, np.int32)
    for tree in range(len(roots) - 1):
        begin, end = roots[tree], roots[tree + 1]
        for n in range(len(rows)):
            row, into = rows[n], found[n]
            product[0], state[0] = weights, _FOLLOWS
            for node in range(begin, end):
                column, at = columns[node], node - begin
                if column == _LEAF:
                    for q in range(_POINTS):
                        product[at, q] *= values[node]
                    continue
                value = row[column]
                right = (value >= values[node]) | ((value != value) & missing_right[node])
                for side in range(2):
                    child = children[node, side]
                    here = 0
                    if state[earlier[child] - begin] == _FOLLOWS:
                        here = _FOLLOWS if side == right else _LEAVES
                    state[child - begin] = here
                    for q in range(_POINTS):
                        product[child - begin, q] = product[at, q] * steps[child, here, 0, q]
            # Back up: a node's product becomes the sum over the leaves below it.
            for node in range(end - 1, begin - 1, -1):
                column, at = columns[node], node - begin
                if column == _LEAF:
                    continue
                left, right = children[node, 0], children[node, 1]
                there, here = state[left - begin], state[right - begin]
                total = 0.0
                for q in range(_POINTS):
                    a, b = product[left - begin, q], product[right - begin, q]
                    total += a * steps[left, there, 1, q] + b * steps[right, here, 1, q]
                    product[at, q] = a + b
                into[column] += total


def compile_paths(trees: list[dict[str, Any]]) -> Paths | None:
    """Compile the trees of an XGBoost model; None if one of their splits has no weight on a side.

    Args:
        trees: As XGBoost's JSON has them, none deeper than ``MAX_DEPTH``, no categorical splits.
    """
    nodes = sum(len(tree["left_children"]) for tree in trees)
    paths = Paths(
        np.zeros(len(trees) + 1, np.int32),
        np.full(nodes, _LEAF, np.int32),
        np.zeros(nodes, np.float32),
        np.zeros(nodes, np.bool_),
        np.zeros((nodes, 2), np.int32),
        np.zeros(nodes, np.int32),
        np.zeros((nodes, 3, 2, _POINTS), np.float32),
    )
    try:
        for number, tree in enumerate(trees):
            _Appender(paths, tree, int(paths.roots[number])).append(0, {})
            paths.roots[number + 1] = paths.roots[number] + len(tree["left_children"])
    except ZeroDivisionError:
        return None
    return paths


class _Appender:
    """Appends one tree of XGBoost's, depth first."""

    def __init__(self, paths: Paths, tree: dict[str, Any], root: int) -> None:
        self._paths, self._tree, self._root, self._next = paths, tree, root, root

    def append(self, source: int, seen: dict[int, tuple[int, float]]) -> int:
        """Append a subtree; returns where its own node went.

        Args:
            source: The node in the tree.
            seen: By column, the last node on the way here whose incoming split is on it, and the
                share of the training weight that follows all the path's splits on it.
        """
        paths, tree, target = self._paths, self._tree, self._next
        self._next += 1
        paths.values[target] = tree["split_conditions"][source]
        sides = tree["left_children"][source], tree["right_children"][source]
        if sides[0] < 0:
            return target
        column = int(tree["split_indices"][source])
        paths.columns[target] = column
        paths.missing_right[target] = not tree["default_left"][source]
        before, share = seen.get(column, (self._root, 1.0))
        weight = tree["sum_hessian"]
        for side, child in enumerate(sides):
            below = share * weight[child] / weight[source]
            at = self.append(child, seen | {column: (self._next, below)})
            paths.children[target, side] = at
            paths.earlier[at] = before
            paths.steps[at] = _steps(share, below, first=before == self._root)
        return target


def _steps(before: float, share: float, *, first: bool) -> Doubles:
    """A split's entry of ``Paths.steps``.

    Args:
        before: Share of the training weight that follows the earlier splits on its column.
        share: And this one as well.
        first: Whether it is the column's first on the path: no factor is replaced.

    Raises:
        ZeroDivisionError: No weight follows.
    """
    if not share > 0.0:
        raise ZeroDivisionError("a split without training weight on a side")
    left, leaves, follows = before * (1.0 - _T), share * (1.0 - _T), share * (1.0 - _T) + _T
    follows_before = left + _T
    if first:
        left, follows_before = np.ones_like(_T), np.ones_like(_T)
    old = (1.0 - before) / follows_before
    return np.array(
        [
            [leaves / left, (0.0 - share) / leaves - (0.0 - before) / left],
            [leaves / follows_before, (0.0 - share) / leaves - old],
            [follows / follows_before, (1.0 - share) / follows - old],
        ]
    )
