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

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from model_server.backends.trees.native import address, kernels

__all__ = ["MAX_DEPTH", "POINTS", "Paths", "T"]

MAX_DEPTH = 8
"""Deeper trees need more points, and a complete binary tree more leaves than it is worth."""

POINTS = MAX_DEPTH // 2
"""``kernels.add_contributions`` has this number written out."""

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int32]
Bools = npt.NDArray[np.bool_]


def _quadrature() -> tuple[Doubles, Doubles]:
    """Points and weights of Gauss-Legendre quadrature on [0, 1]."""
    points, weights = np.polynomial.legendre.leggauss(POINTS)  # type: ignore[no-untyped-call]
    return (points + 1.0) / 2.0, weights / 2.0


T, _WEIGHTS = _quadrature()


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
    _fixed: tuple[int, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Look up once where the arrays lie.

        Raises:
            ValueError: A node leads out of its tree: the loops would write there.
        """
        sizes = np.diff(self.roots)
        begins, ends = np.repeat(self.roots[:-1], sizes), np.repeat(self.roots[1:], sizes)
        inner = self.columns >= 0
        inside = (self.children >= begins[:, None]) & (self.children < ends[:, None])
        known = (self.earlier >= begins) & (self.earlier < ends)
        if len(begins) != len(self.columns) or not (inside[inner].all() and known.all()):
            raise ValueError("the nodes of the trees do not hang together")
        trees = (self.roots, self.columns, self.values, self.missing_right)
        arrays = (*trees, self.children, self.earlier, self.steps, _WEIGHTS)
        object.__setattr__(self, "_fixed", (*map(address, arrays), len(self.roots) - 1))

    def contributions(self, rows: Floats) -> Doubles:
        """Each column's contribution to the log-odds of each row.

        Args:
            rows: float32 (n, F); NaN is a missing value.

        Returns:
            float64 (n, F).
        """
        rows = np.ascontiguousarray(rows)
        found = np.zeros(rows.shape, np.float64)
        largest = int(np.diff(self.roots).max(initial=0))
        product = np.empty((largest, POINTS), np.float64)
        state = np.empty(largest, np.int32)
        kernels().add_contributions(
            *self._fixed,
            address(rows),
            *rows.shape,
            address(product),
            address(state),
            address(found),
        )
        return found
