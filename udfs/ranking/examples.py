"""Rows to train a ranking model on, each as its request would have been seen live."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from udfs.ranking.arrays import DAY_MS, Rows, Singles
from udfs.ranking.candidates import CandidateOptions
from udfs.ranking.counters import ItemCounters
from udfs.ranking.features import FEATURES
from udfs.ranking.index import ItemIndex
from udfs.ranking.log import PurchaseLog, item_keys
from udfs.ranking.replay import Replay, Request
from udfs.ranking.users import DEFAULT_LIMITS, UserLimits

__all__ = ["Build", "ExampleOptions", "Examples", "examples_before", "replay_of", "wanted_of"]

Progress = Callable[[str, float], None]
"""Called with what is being done and which part of that, 0 to 1, is done."""

Build = Callable[[PurchaseLog, int], ItemIndex]
"""Makes a version's items from the purchases of a log before an event time."""

_NONE: Singles = np.empty(0, np.float32)


@dataclass(frozen=True, slots=True)
class ExampleOptions:
    """Which requests become examples.

    Attributes:
        folds: How many spans before the split; each is answered by the items as they were known
            at its beginning.
        fold_days: Length of one, in days.
        negatives: Share of the candidates that were not bought which is kept, above 0 to 1.
        seed: Of that choice.
    """

    folds: int = 2
    fold_days: float = 28.0
    negatives: float = 0.3
    seed: int = 42


@dataclass(frozen=True)
class Examples:
    """Candidates with their labels.

    Attributes:
        features: float32 (n, F), columns as in ``FEATURES``.
        labels: float32 (n,), 1 for what was bought.
        requests: How many requests they come from.
    """

    features: Singles
    labels: Singles
    requests: int

    def __len__(self) -> int:
        return len(self.labels)

    def joined(self, others: Examples) -> Examples:
        """These and others."""
        return Examples(
            np.concatenate((self.features, others.features)),
            np.concatenate((self.labels, others.labels)),
            self.requests + others.requests,
        )


def replay_of(
    log: PurchaseLog,
    split_ms: int,
    build: Build,
    options: CandidateOptions,
    limits: UserLimits = DEFAULT_LIMITS,
) -> Replay:
    """A version made at an event time, with the state that a live job would have then."""
    index = build(log, split_ms)
    replay = Replay(
        index, item_keys(log), options, ItemCounters.empty(len(index), split_ms), limits
    )
    replay.take_all(log.before(split_ms))
    return replay


def examples_before(
    log: PurchaseLog,
    split_ms: int,
    build: Build,
    options: CandidateOptions,
    chosen: ExampleOptions,
    progress: Progress,
) -> Examples:
    """Examples of the spans before an event time; nothing later is looked at."""
    random = np.random.default_rng(chosen.seed)
    features, labels, requests = [np.empty((0, len(FEATURES)), np.float32)], [_NONE], 0
    span_ms = round(chosen.fold_days * DAY_MS)
    for fold in range(chosen.folds):
        begin_ms = split_ms - (chosen.folds - fold) * span_ms
        replay = replay_of(log, begin_ms, build, options)
        span = log.before(begin_ms + span_ms).since(begin_ms)
        for basket, request in replay.requests(span):
            bought = request.labels(replay.rows[basket.items])
            if not bought.any():
                continue
            kept = (bought > 0) | (random.random(len(bought)) < chosen.negatives)
            features.append(request.features[kept])
            labels.append(bought[kept])
            requests += 1
        progress("Examples", (fold + 1) / chosen.folds)
    return Examples(np.concatenate(features), np.concatenate(labels), requests)


def wanted_of(request: Request, bought: Rows, filter_seen: bool) -> frozenset[int]:
    """Rows of a basket that a ranking could have named.

    Args:
        request: As it was seen.
        bought: Rows of the basket, -1 for items that the version does not know.
        filter_seen: Whether items of the history do not count.
    """
    rows = set(bought[bought >= 0].tolist())
    return frozenset(rows - set(request.view.rows.tolist()) if filter_seen else rows)
