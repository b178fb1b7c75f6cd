"""What a ranking model is compared with: popularity and item-kNN, over all items."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import scipy.sparse as sparse

from udfs.ranking.arrays import Rows, largest
from udfs.ranking.evaluation import FIRST, Ranker
from udfs.ranking.log import PurchaseLog
from udfs.ranking.replay import Replay, Request

__all__ = ["baselines"]


def baselines(log: PurchaseLog, replay: Replay, split_ms: int) -> dict[str, Ranker]:
    """The baselines by name; all know what the model knows of the user and filter as it does.

    Args:
        log: Of it, what was before the split is looked at.
        replay: Whose index, live counts and options they share.
        split_ms: Event time, epoch.
    """
    past = log.before(split_ms)
    counts = np.bincount(past.items, minlength=len(log.item_ids)).astype(np.float64)
    cosines = _cosines(past)

    def neighbours(request: Request) -> npt.NDArray[np.float64]:
        near: npt.NDArray[np.float64] = cosines[request.view.rows].sum(axis=0, dtype=np.float64)
        return near if len(request.view.rows) else counts

    def shares(place: int) -> npt.NDArray[np.float64]:
        return replay.counters.sums[:, place]

    def best(scores: npt.NDArray[np.float64], request: Request) -> Rows:
        hidden = ~replay.index.on_sale
        if replay.options.filter_seen:
            hidden[request.view.rows] = True
        return largest(np.where(hidden, -1.0, scores), FIRST).astype(np.int32)

    return {
        "popularity, all time": lambda request: best(counts, request),
        "popularity, half-life 14 days": lambda request: best(shares(1), request),
        "popularity, half-life 3 days": lambda request: best(shares(0), request),
        "item-kNN": lambda request: best(neighbours(request), request),
    }


def _cosines(past: PurchaseLog) -> npt.NDArray[np.float32]:
    """Cosines of the items as sets of users, float32 (I, I), 0 with themselves."""
    shape = (int(past.users.max(initial=0)) + 1, len(past.item_ids))
    bought = sparse.csr_matrix((np.ones(len(past), np.float32), (past.users, past.items)), shape)
    bought.data[:] = 1.0
    sizes = np.sqrt(np.asarray(bought.sum(axis=0)).ravel())
    scaled = bought @ sparse.diags_array(1 / np.maximum(sizes, 1.0).astype(np.float32))
    cosines: npt.NDArray[np.float32] = (scaled.T @ scaled).toarray()
    np.fill_diagonal(cosines, 0.0)
    return cosines
