"""What the ranking model sees of a user and each candidate: one code, live and in training.

All of it comes from the state as it was when the request came; nothing here looks at a log.
"""

from __future__ import annotations

import numpy as np

from udfs.ranking import kernels
from udfs.ranking.arrays import DAY_MS, Singles
from udfs.ranking.candidates import Candidates
from udfs.ranking.counters import HALF_LIVES_DAYS, ItemCounters
from udfs.ranking.index import ItemIndex
from udfs.ranking.views import UserView

__all__ = ["FEATURES", "pair_features"]

_USER = (
    "user_baskets",
    "user_items",
    "user_age_days",
    "user_idle_days",
    "user_log_price",
    "session_items",
)
_ITEM = (
    *(f"item_log_share_{days:g}d" for days in HALF_LIVES_DAYS),
    "item_trend",
    "item_age_days",
    "item_idle_days",
    "item_log_price",
)
_PAIR = (
    "price_gap",
    "covisit_users",
    "covisit_session",
    "similarity",
    "session_similarity",
    "category_share",
    "bought_count",
    "bought_weight",
    "bought_days_ago",
)

FEATURES: tuple[str, ...] = (*_USER, *_ITEM, *_PAIR)
"""The model's columns, in order. Missing is NaN: no history, no price, never bought."""

_ITEM_FROM, _PAIR_FROM = len(_USER), len(_USER) + len(_ITEM)


def pair_features(
    index: ItemIndex, counters: ItemCounters, view: UserView, found: Candidates
) -> Singles:
    """Features of a user with each candidate.

    Args:
        index: The version's items.
        counters: Of the same index, as of the request.
        view: The user as of the request.
        found: The candidates.

    Returns:
        float32 (C, F), columns as in ``FEATURES``.
    """
    matrix = np.empty((len(found), len(FEATURES)), np.float32)
    rows, time_ms = found.rows, view.time_ms
    matrix[:, : len(_USER)] = _user(view)
    items = counters.first_ms, counters.last_ms, index.log_prices
    kernels.fill_item(
        matrix[:, _ITEM_FROM:_PAIR_FROM],
        rows,
        time_ms,
        items,
        counters.sums,
        counters.shares(),
    )
    log_price = np.float32(_log_price(view))
    own = (index.log_prices[rows] - log_price, view.by_users[rows], view.by_baskets[rows])
    for place, column in enumerate((*own, view.near[rows], view.session_near[rows])):
        matrix[:, _PAIR_FROM + place] = column
    history = view.rows, view.last_ms, view.counts, view.weights
    by_category = np.zeros(index.category_count)
    bought = matrix[:, _PAIR_FROM + len(own) + 2 :]
    kernels.fill_bought(bought, rows, time_ms, history, index.categories, by_category)
    return matrix


def _user(view: UserView) -> list[float]:
    state = view.state
    if not state.baskets:
        return [0.0, 0.0, np.nan, np.nan, np.nan, 0.0]
    running = view.time_ms >= state.session_start_ms
    return [
        state.baskets,
        np.log1p(view.counts.sum()),
        _days(view.time_ms - state.first_ms),
        _days(view.time_ms - state.last_ms),
        _log_price(view),
        np.log1p(state.session_items) if running else 0.0,
    ]


def _log_price(view: UserView) -> float:
    state = view.state
    return float(np.log(state.price_sum / state.prices)) if state.price_sum > 0 else np.nan


def _days(span_ms: int) -> float:
    return span_ms / DAY_MS
