"""Item embeddings that go on learning from baskets between two versions.

Each basket is one step of stochastic gradient ascent on the logarithm of
``sigmoid(s * e_i . m_i)`` for its items, m_i being the direction of the others of the basket, and
of ``sigmoid(-s * e_n . m_i)`` for items n that were not in it, drawn by popularity (skip-gram with
negative sampling, Mikolov et al., 2013). An item that had no direction takes that of its first
basket.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from udfs.ranking.arrays import Rows, Singles
from udfs.ranking.index import ItemIndex

__all__ = ["OnlineEmbeddings", "OnlineOptions"]


@dataclass(frozen=True, slots=True)
class OnlineOptions:
    """How fast embeddings follow.

    Attributes:
        rate: Length of a step, above 0.
        sharpness: s above.
        negatives: Items drawn for each of a basket.
        most: Items of a basket that are looked at; a wholesaler's hundreds say little.
        seed: Of the draws.
    """

    rate: float = 0.02
    sharpness: float = 4.0
    negatives: int = 5
    most: int = 50
    seed: int = 42


class OnlineEmbeddings:
    """Follows baskets with an index's embeddings.

    Attributes:
        index: The version's items with embeddings that ``take`` changes in place.
    """

    def __init__(self, index: ItemIndex, options: OnlineOptions) -> None:
        """Begin with a version's embeddings, which stay as they are."""
        self.index = replace(index, embeddings=index.embeddings.copy())
        self._options = options
        self._random = np.random.default_rng(options.seed)
        share = index.popularity.sum(axis=1) ** 0.75
        total = share.sum()
        self._cumulated = np.cumsum(share / total if total else np.full(len(share), 1 / len(share)))

    def take(self, rows: Rows) -> Rows:
        """Learn from a basket.

        Args:
            rows: Its items, int32 (n,); -1 is left out. Fewer than two say nothing.

        Returns:
            The rows whose embeddings have changed, ascending.
        """
        rows = np.unique(rows[rows >= 0])[: self._options.most].astype(np.int32)
        if len(rows) < 2:
            return np.empty(0, np.int32)
        table = self.index.embeddings
        own = table[rows]
        context = _directions(own.sum(axis=0) - own)
        born = ~own.any(axis=1)
        table[rows] = own + self._step(own, context, 1.0)
        table[rows[born]] = context[born]
        drawn = self._draw(rows, len(rows) * self._options.negatives)
        pushed = np.resize(context, (len(drawn), context.shape[1]))
        np.add.at(table, drawn, self._step(table[drawn], pushed, -1.0))
        changed = np.union1d(rows, drawn).astype(np.int32)
        table[changed] = _directions(table[changed])
        return changed

    def _step(self, own: Singles, context: Singles, sign: float) -> Singles:
        options = self._options
        agreed = options.sharpness * sign * (own * context).sum(axis=1)
        slope = sign * options.rate / (1 + np.exp(agreed))
        step: Singles = (slope[:, None] * context).astype(np.float32)
        return step

    def _draw(self, rows: Rows, count: int) -> Rows:
        """Items by popularity that are not in the basket and have a direction."""
        drawn = np.searchsorted(self._cumulated, self._random.random(count))
        drawn = np.minimum(drawn, len(self._cumulated) - 1)
        kept = ~np.isin(drawn, rows) & self.index.embeddings[drawn].any(axis=1)
        chosen: Rows = drawn[kept].astype(np.int32)
        return chosen


def _directions(vectors: Singles) -> Singles:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    found: Singles = np.where(lengths > 1e-6, vectors / np.maximum(lengths, 1e-6), 0)
    return found.astype(np.float32)
