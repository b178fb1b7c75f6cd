"""A user as the model sees them at one event time: history in the rows of one model version."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from udfs.ranking.arrays import Floats, Rows, Singles, Times, halved
from udfs.ranking.index import ItemIndex
from udfs.ranking.users import UserState

__all__ = ["UserView", "list_scores", "view_of"]

HISTORY_HALF_LIFE_DAYS = 60.0


@dataclass(frozen=True, slots=True)
class UserView:
    """What candidates and features read of one user.

    Attributes:
        state: The state itself, for totals.
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
    return UserView(
        state=state,
        time_ms=time_ms,
        rows=rows,
        last_ms=last_ms,
        counts=entries["count"][known].astype(np.float64),
        weights=weights,
        recent=recent,
        vector=_mean(index, rows, weights),
        session_vector=_mean(index, rows[recent], weights[recent]),
        by_users=list_scores(index.user_lists, index.user_weights, rows, weights),
        by_baskets=list_scores(
            index.basket_lists, index.basket_weights, rows[recent], weights[recent]
        ),
    )


def _mean(index: ItemIndex, rows: Rows, weights: Floats) -> Singles:
    """The items' mean direction through the user tower, float32 (D,)."""
    mean = _direction(weights.astype(np.float32) @ index.embeddings[rows])
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
    given = weights[rows] * shares[:, None]
    # -1 is counted with weight 0 as the last item.
    named = lists[rows].ravel() % max(len(lists), 1)
    scores: Floats = np.bincount(named, given.ravel(), minlength=len(lists)).astype(np.float64)
    return scores
