"""What the ranking model sees of a user and each candidate: one code, live and in training.

All of it comes from the state as it was when the request came; nothing here looks at a log.
"""

from __future__ import annotations

import numpy as np

from udfs.ranking.arrays import DAY_MS, Floats, Rows, Singles
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

_LONGEST_DAYS = 3_650.0


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
    columns = [*_user(view), *_item(index, counters, view.time_ms, found.rows)]
    columns += _pair(index, view, found.rows)
    for place, column in enumerate(columns):
        matrix[:, place] = column
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


def _item(
    index: ItemIndex, counters: ItemCounters, time_ms: int, rows: Rows
) -> list[Floats | Singles]:
    with np.errstate(invalid="ignore", divide="ignore"):
        shares = counters.at(rows, time_ms) / counters.totals(time_ms)
    logs = np.log(np.nan_to_num(shares) * len(index) + 1e-3)
    age = time_ms - counters.first_ms[rows].astype(np.float64)
    idle = time_ms - counters.last_ms[rows].astype(np.float64)
    return [
        *logs.T,
        logs[:, 0] - logs[:, -1],
        np.where(age < 0, 0.0, _days(age)),
        np.minimum(_days(idle), _LONGEST_DAYS),
        np.log(index.prices[rows]),
    ]


def _pair(index: ItemIndex, view: UserView, rows: Rows) -> list[Floats | Singles]:
    total = view.weights.sum()
    embeddings = index.embeddings[rows]
    prices = np.log(index.prices[rows])
    return [
        prices - np.float32(_log_price(view)),
        view.by_users[rows],
        view.by_baskets[rows],
        embeddings @ view.vector,
        embeddings @ view.session_vector,
        _category_shares(index, view, rows) / total if total > 0 else np.full(len(rows), np.nan),
        *_bought(index, view, rows),
    ]


def _category_shares(index: ItemIndex, view: UserView, rows: Rows) -> Floats:
    size = int(index.categories.max(initial=0)) + 1
    by_category = np.bincount(index.categories[view.rows], view.weights, minlength=size)
    shares: Floats = by_category[index.categories[rows]]
    return shares


def _bought(index: ItemIndex, view: UserView, rows: Rows) -> list[Floats]:
    """How often, with what weight and how many days ago the user bought each."""
    place = np.full(len(index), -1, np.int64)
    place[view.rows] = np.arange(len(view.rows))
    at = place[rows]
    none = at < 0
    if not len(view.rows):
        return [np.zeros(len(rows)), np.zeros(len(rows)), np.full(len(rows), np.nan)]
    return [
        np.where(none, 0.0, view.counts[at]),
        np.where(none, 0.0, view.weights[at]),
        np.where(none, np.nan, _days(view.time_ms - view.last_ms[at])),
    ]


def _days(span_ms: int | Floats) -> float | Floats:
    return span_ms / DAY_MS
