"""Requests of a micro-batch: which are still waited for, and the candidates of all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from udfs.batches.batch import FeatureBatch
from udfs.ranking.candidates import CandidateOptions, candidates
from udfs.ranking.features import pair_features
from udfs.ranking.live_items import LiveItems
from udfs.ranking.users import UserState
from udfs.ranking.views import UserView, view_of

__all__ = ["Asked", "candidate_batch", "has_expired", "warm_up"]


@dataclass(frozen=True, slots=True)
class Asked:
    """A request of a batch.

    Attributes:
        row: Its place in the batch.
        document: The request.
        view: Its user, as of the request.
    """

    row: int
    document: dict[str, Any]
    view: UserView


def warm_up(items: LiveItems, options: CandidateOptions) -> None:
    """Rank once, so that the first request does not wait for what is compiled."""
    state, index = UserState(), items.index
    state.add(index.keys[:8], index.as_of_ms)
    view = view_of(index, state, index.as_of_ms)
    pair_features(index, items.counters, view, candidates(index, items.counters, view, options))


def has_expired(document: dict[str, Any], now_ms: int) -> bool:
    """Whether nobody waits for a request any more; one without ``deadline_ms`` always counts."""
    deadline_ms = document.get("deadline_ms")
    return type(deadline_ms) is int and deadline_ms < now_ms


def candidate_batch(
    items: LiveItems,
    batch: FeatureBatch,
    asked: Sequence[Asked],
    options: CandidateOptions,
    order: npt.NDArray[np.intp],
) -> FeatureBatch:
    """The candidates of some requests with their features, as ``RankingOutput`` takes them.

    Args:
        items: What is ranked.
        batch: What the requests came in.
        asked: The requests, at least one.
        options: How candidates are chosen.
        order: Where each of the model's features is, among those of the request and of ``FEATURES``
            after them.
    """
    index, counters = items.index, items.counters
    found = [candidates(index, counters, one.view, options) for one in asked]
    pairs = [
        pair_features(index, counters, one.view, some)
        for one, some in zip(asked, found, strict=True)
    ]
    sizes = [len(some) for some in found]
    at = np.repeat(np.array([one.row for one in asked], np.intp), sizes)
    rows = np.concatenate([some.rows for some in found])
    raw, keys = list[bytes](), list[str]()
    for one, size in zip(asked, sizes, strict=True):
        raw += [_head(items, batch, one, size), *([b""] * (size - 1))] if size else []
        keys += [batch.keys[one.row]] * size
    features = np.concatenate([batch.features[at], np.concatenate(pairs)], axis=1)
    return FeatureBatch(
        keys=keys,
        ids=index.ids[rows].tolist(),
        raw=raw,
        positions=batch.positions[at],
        times=batch.times[at],
        entities={},
        values={
            "sources": np.concatenate([some.sources for some in found]).astype(np.float64),
            "popularity": counters.sums[rows, 1],
        },
        features=features[:, order].astype(np.float64),
        order=np.empty((len(rows), 0), np.int64),
        late=np.zeros(len(rows), np.bool_),
    )


def _head(items: LiveItems, batch: FeatureBatch, one: Asked, most: int) -> bytes:
    """What the answer needs of a request."""
    return orjson.dumps(
        {
            "request_id": batch.ids[one.row],
            "user": batch.keys[one.row],
            "gateway": one.document.get("gateway") or "",
            "item_version": items.version,
            "items": _wanted(one.document, most),
        }
    )


def _wanted(document: dict[str, Any], most: int) -> int:
    wanted = document.get("items")
    return min(most, wanted if type(wanted) is int and wanted > 0 else 20)
