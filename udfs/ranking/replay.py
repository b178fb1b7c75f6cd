"""A log played through the live job's own code: state first, then what a request would have seen.

A request sees what came before its event time and nothing of that time: all requests of one time
are answered before its purchases are taken.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby

import numpy as np

from udfs.ranking.arrays import Keys, Rows, Singles
from udfs.ranking.candidates import CandidateOptions, Candidates, candidates
from udfs.ranking.counters import ItemCounters
from udfs.ranking.features import pair_features
from udfs.ranking.index import ItemIndex
from udfs.ranking.log import Basket, PurchaseLog
from udfs.ranking.users import DEFAULT_LIMITS, UserLimits, UserState
from udfs.ranking.views import UserView, view_of

__all__ = ["Replay", "Request"]


@dataclass(frozen=True, slots=True)
class Request:
    """What a user's request ranks.

    Attributes:
        view: The user as of the request.
        found: The candidates.
        features: float32 (C, F); see ``pair_features``.
    """

    view: UserView
    found: Candidates
    features: Singles

    def labels(self, bought: Rows) -> Singles:
        """1 for each candidate that is among the rows, 0 for the others, float32 (C,)."""
        return np.isin(self.found.rows, bought).astype(np.float32)


@dataclass
class Replay:
    """All users' and items' state while a log is played.

    Attributes:
        index: The items of the version that answers.
        keys: Of the log's item numbers.
        options: For candidates.
        counters: Of the index.
        limits: What a user's state holds.
        users: State by number of the user.
    """

    index: ItemIndex
    keys: Keys
    options: CandidateOptions
    counters: ItemCounters
    limits: UserLimits = DEFAULT_LIMITS
    users: dict[int, UserState] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.rows = self.index.rows_of(self.keys)

    def take(self, basket: Basket) -> None:
        """Count a basket in its user's and its items' state."""
        state = self.users[basket.user] = self._state(basket.user, basket.time_ms)
        state.add(self.keys[basket.items], basket.time_ms, basket.prices, self.limits)
        self.counters.add(self.rows[basket.items], basket.time_ms)

    def take_all(self, log: PurchaseLog) -> None:
        """Count all of a log's baskets."""
        for basket in log.in_baskets():
            self.take(basket)

    def request(self, user: int, time_ms: int) -> Request:
        """Ask for a user now; the state is not changed."""
        view = view_of(self.index, self._state(user, time_ms), time_ms)
        found = candidates(self.index, self.counters, view, self.options)
        return Request(view, found, pair_features(self.index, self.counters, view, found))

    def _state(self, user: int, time_ms: int) -> UserState:
        return self.users.get(user, UserState()).as_of(time_ms, self.limits)

    def requests(
        self, log: PurchaseLog, wanted: Iterable[int] | None = None
    ) -> Iterator[tuple[Basket, Request]]:
        """Ask just before each basket of a log, then take it.

        Args:
            log: What happens after what was taken so far.
            wanted: Numbers of the baskets to ask for, as in ``log.baskets``; none: all.
        """
        chosen = None if wanted is None else set(wanted)
        numbered = zip(np.unique(log.baskets).tolist(), log.in_baskets(), strict=True)
        for _, together in groupby(numbered, key=lambda item: item[1].time_ms):
            baskets = list(together)
            for number, basket in baskets:
                if chosen is None or number in chosen:
                    yield basket, self.request(basket.user, basket.time_ms)
            for _, basket in baskets:
                self.take(basket)
