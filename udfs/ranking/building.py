"""A version's items from a log of purchases: co-visitation, embeddings, popularity."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import scipy.sparse as sparse
from scipy.sparse.linalg import svds

from udfs.ranking.arrays import DAY_MS, Rows, Singles, halved
from udfs.ranking.counters import ItemCounters
from udfs.ranking.index import ItemIndex
from udfs.ranking.log import PurchaseLog

__all__ = ["BuildOptions", "build_index"]


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """How items are described.

    Attributes:
        dimensions: Of an embedding.
        neighbours: Length of a co-visitation list.
        half_life_days: Age at which a basket counts half in the co-visitation.
        off_sale_days: An item not bought for so long is off sale; 0: none ever is.
        seed: Of the embeddings' first guess.
    """

    dimensions: int = 48
    neighbours: int = 100
    half_life_days: float = 180.0
    off_sale_days: float = 0.0
    seed: int = 42


def build_index(log: PurchaseLog, as_of_ms: int, options: BuildOptions) -> ItemIndex:
    """Describe all items by the purchases before an event time.

    Args:
        log: Later purchases are not looked at; their items get a row without a neighbour.
        as_of_ms: Event time, epoch.
        options: See there.
    """
    past = log.before(as_of_ms)
    weights = halved(as_of_ms - past.times_ms, options.half_life_days)
    by_user = _matrix(past.users, past.items, weights, len(log.item_ids))
    by_basket = _matrix(past.baskets, past.items, weights, len(log.item_ids))
    user_lists, user_weights = _lists(by_user, options.neighbours)
    basket_lists, basket_weights = _lists(by_basket, options.neighbours)
    counted = ItemCounters.of_log(past, as_of_ms)
    since_ms = as_of_ms - round(options.off_sale_days * DAY_MS)
    return ItemIndex(
        ids=log.item_ids,
        embeddings=embeddings_of(by_basket, by_user, options),
        user_tower=np.zeros((options.dimensions, options.dimensions), np.float32),
        user_lists=user_lists,
        user_weights=user_weights,
        basket_lists=basket_lists,
        basket_weights=basket_weights,
        prices=_prices(past, len(log.item_ids)),
        categories=np.unique(log.categories, return_inverse=True)[1].astype(np.int32),
        popularity=counted.sums,
        first_ms=counted.first_ms,
        last_ms=counted.last_ms,
        on_sale=(counted.last_ms >= since_ms) | (options.off_sale_days == 0),
        as_of_ms=as_of_ms,
    )


def _matrix(
    groups: Rows, items: Rows, weights: npt.NDArray[np.float64], width: int
) -> sparse.csr_matrix:
    """Largest weight of each group's purchases of an item: (groups, items)."""
    order = np.argsort(weights, kind="stable")
    _, numbers = np.unique(groups, return_inverse=True)
    height = int(numbers.max(initial=-1)) + 1
    pairs = numbers[order] * width + items[order]
    last = np.unique(pairs[::-1], return_index=True)[1]
    chosen = order[::-1][last]
    return sparse.csr_matrix(
        (weights[chosen], (numbers[chosen], items[chosen])), shape=(height, width)
    )


def _lists(matrix: sparse.csr_matrix, length: int) -> tuple[Rows, Singles]:
    """The largest cosines of each column with the others."""
    roots = matrix.sqrt()
    sizes = np.sqrt(np.asarray(matrix.sum(axis=0)).ravel())
    scaled = roots @ sparse.diags_array(1 / np.where(sizes > 0, sizes, 1.0))
    cosines = (scaled.T @ scaled).tocsr()
    cosines.setdiag(0)
    cosines.eliminate_zeros()
    lists = np.full((matrix.shape[1], length), -1, np.int32)
    weights = np.zeros((matrix.shape[1], length), np.float32)
    for row in range(matrix.shape[1]):
        found = slice(cosines.indptr[row], cosines.indptr[row + 1])
        values, columns = cosines.data[found], cosines.indices[found]
        best = np.lexsort((columns, -values))[:length]
        lists[row, : len(best)] = columns[best]
        weights[row, : len(best)] = values[best]
    return lists, weights


def embeddings_of(
    by_basket: sparse.csr_matrix, by_user: sparse.csr_matrix, options: BuildOptions
) -> Singles:
    """Directions of the items, float32 (I, D): a truncated SVD of users and baskets by items."""
    stacked = sparse.vstack((by_basket.sqrt(), by_user.sqrt())).tocsr()
    sizes = np.sqrt(np.asarray(stacked.power(2).sum(axis=0)).ravel())
    # Popular items would fill every direction.
    scaled = stacked @ sparse.diags_array(1 / np.sqrt(np.where(sizes > 0, sizes, 1.0)))
    count = min(options.dimensions, min(scaled.shape) - 1)
    vectors = np.zeros((len(sizes), options.dimensions), np.float32)
    if count > 0 and scaled.nnz:
        generator = np.random.default_rng(options.seed)
        _, values, found = svds(
            scaled.astype(np.float64), count, v0=generator.normal(size=min(scaled.shape))
        )
        vectors[:, :count] = (found * np.sqrt(values)[:, None]).T
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit: Singles = np.where(lengths > 1e-6, vectors / np.maximum(lengths, 1e-6), 0.0)
    return unit.astype(np.float32)


def _prices(past: PurchaseLog, items: int) -> Singles:
    """The mean price of each item's purchases; NaN without one."""
    known = np.isfinite(past.prices)
    sums = np.bincount(past.items[known], past.prices[known], minlength=items)
    counts = np.bincount(past.items[known], minlength=items)
    with np.errstate(invalid="ignore"):
        return (sums / counts).astype(np.float32)
