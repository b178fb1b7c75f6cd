"""Ranking with the project's own library calls in plain Python: what a program without Flink does.

The same candidates, features and compiled trees as the job's, one model call for the requests that
came together. Popularity stays what the version has; nothing is checked, deduplicated, joined to
feedback or kept. It runs in a peer's environment, too, with this project's libraries.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from model_server.backends import load_table
from udfs.preparation.preparation import Preparation
from udfs.ranking.arrays import keys_of, largest
from udfs.ranking.candidates import CandidateOptions, candidates, reason
from udfs.ranking.counters import ItemCounters
from udfs.ranking.features import FEATURES, pair_features
from udfs.ranking.index import ItemIndex
from udfs.ranking.users import UserState
from udfs.ranking.views import UserView, view_of

__all__ = ["Ranker"]


class Ranker:
    """A version's items and model.

    Args:
        folder: The version's.
        options: How candidates are chosen.
    """

    def __init__(self, folder: Path, options: CandidateOptions) -> None:
        self._options = options
        self._model, self._prepared = load_table(folder), Preparation.load(folder)
        self._index = ItemIndex.load(folder)
        self._counters = ItemCounters.of_index(self._index)
        self._version = int(folder.name)
        places = {name: n for n, name in enumerate(FEATURES)}
        # What the job makes of a request itself is missing here, as -1: a column of NaN.
        self._order = np.array([places.get(name, -1) for name in self._prepared.names], np.intp)

    def buy(self, state: UserState, event: dict[str, Any]) -> None:
        """Take a purchase into a user's state."""
        prices = np.array([event.get("price", np.nan)], np.float32)
        state.add(keys_of([event["item"]]), event["event_time_ms"], prices)

    def view(self, state: UserState, time_ms: int) -> UserView:
        """A user at the time of a request."""
        return view_of(self._index, state, time_ms)

    def rank(self, asked: Sequence[tuple[dict[str, Any], UserView]]) -> list[tuple[bytes, bytes]]:
        """Answer requests with one model call; key and value of each reply."""
        found = [candidates(self._index, self._counters, view, self._options) for _, view in asked]
        scores = self._scores([view for _, view in asked], found)
        replies, start = [], 0
        for (request, _), some in zip(asked, found, strict=True):
            own = scores[start : start + len(some)]
            replies.append((request["gateway"].encode(), self._reply(request, some, own)))
            start += len(some)
        return replies

    def _scores(self, views: Sequence[UserView], found: Sequence[Any]) -> Any:
        pairs = zip(views, found, strict=True)
        own = [pair_features(self._index, self._counters, view, some) for view, some in pairs]
        none = np.full((sum(map(len, found)), 1), np.nan)
        features = np.concatenate([np.concatenate(own), none], axis=1)[:, self._order]
        return self._model.predict(self._prepared.transform(features.astype(np.float64)))

    def _reply(self, request: dict[str, Any], found: Any, scores: Any) -> bytes:
        best = largest(scores, request["items"]).tolist()
        ids, sources = self._index.ids[found.rows].tolist(), found.sources.tolist()
        return orjson.dumps(
            {
                "request_id": request["event_id"],
                "user": request["user"],
                "model": {"name": "feed", "version": self._version},
                "fallback_reason": None,
                "items": [
                    {
                        "item": ids[row],
                        "position": n,
                        "score": float(scores[row]),
                        "reason": reason(sources[row]),
                    }
                    for n, row in enumerate(best)
                ],
            }
        )
