"""A user as the model sees them at one event time: history in the rows of one model version."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from udfs.ranking.arrays import Floats, Rows, Singles, Times, halved
from udfs.ranking.index import ItemIndex
from udfs.ranking.kernels import add_lists, products, weighted_sum
from udfs.ranking.users import UserState

__all__ = ["UserView", "list_scores", "view_of"]

HISTORY_HALF_LIFE_DAYS = 60.0


@dataclass(frozen=True, slots=True)
class UserView:
    """What candidates and features read of one user.

    Attributes:
        state: The state as it was then, for totals.
        time_ms: Event time of the request, epoch.
        rows: Rows of the history's items that this version knows, int32 (h,), the newest last.
        last_ms: Event time of the last purchase of each, int64 (h,).
        counts: Purchases of each, float64 (h,).
        weights: What each weighs: decayed by age, float64 (h,).
        recent: Which of them were bought in the newest basket or session, bool (h,).
        vector: What the user tower makes of the mean of the items' embeddings by weight, float32
            (D,), of length 1, or 0.
        session_vector: The same of the recent ones alone.
        by_users: Co-visitation score of every item by ``user_lists``, float64 (I,).
        by_baskets: Co-visitation score of every item with the recent ones, float64 (I,).
        near: Product of every item's embedding with ``vector``, float32 (I,).
        session_near: The same with ``session_vector``.
    """

    state: UserState
    time_ms: int
    rows: Rows
    last_ms: Times
    counts: Floats
    weights: Floats
    recent: npt.NDArray[np.bool_]
    vector: Singles
    session_vector: Singles
    by_users: Floats
    by_baskets: Floats
    near: Singles
    session_near: Singles


def view_of(index: ItemIndex, state: UserState, time_ms: int) -> UserView:
    """See a user's state in the rows of a version, as of an event time.

    Args:
        index: The version's items.
        state: Not changed.
        time_ms: Event time of the request, epoch; entries that are later count as of age 0.
    """
    entries = state.entries
    rows = index.rows_of(entries["key"])
    known = rows >= 0
    rows, last_ms = rows[known], entries["last_ms"][known]
    weights = halved(time_ms - last_ms, HISTORY_HALF_LIFE_DAYS)
    recent = last_ms >= state.session_start_ms
    recent_rows, recent_weights = rows[recent], weights[recent]
    vector = _mean(index, rows, weights)
    session_vector = _mean(index, recent_rows, recent_weights)
    return UserView(
        state=replace(state),
        time_ms=time_ms,
        rows=rows,
        last_ms=last_ms,
        counts=entries["count"][known].astype(np.float64),
        weights=weights,
        recent=recent,
        vector=vector,
        session_vector=session_vector,
        by_users=list_scores(index.user_lists, index.user_weights, rows, weights),
        by_baskets=list_scores(
            index.basket_lists, index.basket_weights, recent_rows, recent_weights
        ),
        near=products(index.columns, vector),
        session_near=products(index.columns, session_vector),
    )


def _mean(index: ItemIndex, rows: Rows, weights: Floats) -> Singles:
    """The items' mean direction through the user tower, float32 (D,)."""
    mean = _direction(weighted_sum(index.embeddings, rows, weights))
    return _direction(mean + np.tanh(mean @ index.user_tower))


def _direction(vector: Singles) -> Singles:
    length = float(np.linalg.norm(vector))
    direction: Singles = vector / np.float32(length) if length > 0 else vector
    return direction


def list_scores(lists: Rows, weights: Singles, rows: Rows, shares: Floats) -> Floats:
    """Sum of what the rows' lists give each item, float64 (I,).

    Args:
        lists: int32 (I, K), -1 where a list has ended, with weight 0.
        weights: float32 (I, K).
        rows: Whose lists, int32 (h,).
        shares: What each row's list counts, float64 (h,).
    """
    scores: Floats = np.zeros(len(lists))
    add_lists(lists, weights, rows, shares, scores)
    return scores
