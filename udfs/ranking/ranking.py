"""How the last keyed stage of a ranking job answers: candidates of a request, one model call.

It stands where scoring stands in a job that scores events, and uses the same scoring for its own
rows: the candidates of a request are a batch.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread
from typing import Any

import numpy as np
import orjson
from pyflink.common import Row, Types
from pyflink.datastream import RuntimeContext
from pyflink.datastream.state import MapStateDescriptor
from pyflink.datastream.timerservice import TimerService

from model_server.errors import ModelError, RepositoryError
from model_server.repository import ModelVersion, find_version
from udfs.batches.batch import FeatureBatch
from udfs.enrichment.table_sources import KafkaAccess
from udfs.ranking.candidates import CandidateOptions, candidates
from udfs.ranking.features import FEATURES, pair_features
from udfs.ranking.index import IndexFileError, ItemIndex
from udfs.ranking.live_items import LiveItems
from udfs.ranking.popular_feed import PopularFeed
from udfs.ranking.user_states import BatchUsers, IdleUsers
from udfs.ranking.users import UserLimits, UserState
from udfs.ranking.views import view_of
from udfs.scoring.scoring import Scoring

__all__ = ["RankingOptions", "RankingScoring"]

logger = logging.getLogger(__name__)

_LOAD_S = 10.0


@dataclass(frozen=True)
class RankingOptions:
    """What a ranking stage needs to know.

    Attributes:
        models: Folder of ``<name>/<version>/`` folders.
        name: The model's name.
        version: The pinned version; none follows the newest.
        reload_ms: How often the folder is looked at.
        popularity: Topic of popularities.
        kafka: How it is read.
        candidates: How candidates are chosen.
        limits: What is kept of a user.
        kinds: Interactions that are a user's history.
        request_columns: The features that every row of a request shares, as the stage makes them.
        columns: The model's features in order; each one of those or of ``FEATURES``.
        follows: Whether a new version needs a new scoring; a server takes it by itself.
    """

    models: Path
    name: str
    version: int | None
    reload_ms: int
    popularity: str
    kafka: KafkaAccess
    candidates: CandidateOptions
    limits: UserLimits
    kinds: frozenset[str]
    request_columns: tuple[str, ...]
    columns: tuple[str, ...]
    follows: bool


@dataclass(frozen=True)
class _Loaded:
    """A version that was loaded beside the running one."""

    items: LiveItems
    scoring: Scoring


class RankingScoring:
    """Ranks candidates for each request of a batch, and learns from its interactions.

    Rows are taken in their order, so that a request sees what came before it. Users lie in Flink's
    keyed state; items are those of the newest version, which is loaded beside the running one and
    put in its place between two batches.

    Args:
        options: What to rank and how.
        scoring: Makes what scores the candidates with a version; its output is a
            ``RankingOutput``.
    """

    def __init__(self, options: RankingOptions, scoring: Callable[[ModelVersion], Scoring]) -> None:
        self._options = options
        self._make = scoring

    def open(self, runtime_context: RuntimeContext) -> None:
        """Load the items and what scores; Flink has restored the state by now.

        Raises:
            RepositoryError: there is no version, or it cannot be used.
        """
        options = self._options
        self._context = runtime_context
        descriptor = MapStateDescriptor("users", Types.STRING(), Types.PICKLED_BYTE_ARRAY())
        self._users = runtime_context.get_map_state(descriptor)
        metrics = runtime_context.get_metrics_group()
        self._requests = metrics.counter("requests")
        self._interactions = metrics.counter("interactions")
        self._forgotten = metrics.counter("users_forgotten")
        self._idle = IdleUsers(options.limits.idle_ms)
        self._version_metric = metrics.counter("item_version")
        self._popular = PopularFeed(options.popularity, options.kafka)
        self._popular.start()
        self._popular.wait_loaded(_LOAD_S)  # without it, with the version's own counts
        places = {name: n for n, name in enumerate((*options.request_columns, *FEATURES))}
        self._order = np.array([places[name] for name in options.columns], np.intp)
        found = find_version(options.models, options.name, options.version)
        loaded = self._load(found, self._make(found))
        loaded.scoring.open(runtime_context)
        self._version = 0
        self._use(loaded)
        self._loaded: _Loaded | None = None
        self._stop = Event()
        self._seen: set[int] = set()
        if options.version is None:
            Thread(target=self._follow, name="streamscore-versions", daemon=True).start()

    def close(self) -> None:
        """Stop what runs beside the stage."""
        self._stop.set()
        self._scoring.close()
        self._popular.stop()

    def take(self, bucket: int, batch: FeatureBatch, timers: TimerService) -> Iterator[Row]:
        """Answer a batch's requests, now or later; Flink's current key is the bucket."""
        self._swap()
        self._items.take(self._popular.items.take_changed())
        if batch.dead_letters or batch.duplicates:
            refused = FeatureBatch.empty((), ())
            refused.dead_letters.extend(batch.dead_letters)
            refused.duplicates.extend(batch.duplicates)
            yield from self._scoring.take(bucket, refused, timers)
        users = BatchUsers(self._users, self._options.limits)
        times = batch.times.tolist()
        for row, (user, raw) in enumerate(zip(batch.keys, batch.raw, strict=True)):
            document = orjson.loads(raw)
            kind, item = document["kind"], document.get("item")
            if kind == "request":
                self._requests.inc(1)
                asked = self._candidates(batch, row, document, users.of(user, times[row]))
                yield from self._scoring.take(bucket, asked, timers)
            elif kind in self._options.kinds and item:
                self._interactions.inc(1)
                users.buy(user, times[row], item, document.get("price"))
        users.write()
        if times:
            self._forgotten.inc(self._idle.sweep(bucket, max(times), self._users))

    def on_timer(self, bucket: int, timestamp_ms: int, timers: TimerService) -> Iterator[Row]:
        """What was asked for may have been answered."""
        return self._scoring.on_timer(bucket, timestamp_ms, timers)

    def _candidates(
        self, batch: FeatureBatch, row: int, document: dict[str, Any], state: UserState
    ) -> FeatureBatch:
        """A request's candidates with their features, as a batch of rows."""
        index, counters, options = self._items.index, self._items.counters, self._options
        user, time_ms = batch.keys[row], int(batch.times[row])
        view = view_of(index, state, time_ms)
        found = candidates(index, counters, view, options.candidates)
        pairs = pair_features(index, counters, view, found)
        n = len(found)
        shared = np.broadcast_to(batch.features[row], (n, batch.features.shape[1]))
        features = np.concatenate([shared, pairs], axis=1)[:, self._order].astype(np.float64)
        asked = {
            "request_id": batch.ids[row],
            "user": user,
            "gateway": document.get("gateway") or "",
            "item_version": self._items.version,
            "items": _wanted(document, n),
        }
        return FeatureBatch(
            keys=[user] * n,
            ids=index.ids[found.rows].tolist(),
            raw=[orjson.dumps(asked), *([b""] * (n - 1))],
            positions=np.tile(batch.positions[row], (n, 1)),
            times=np.full(n, time_ms, np.int64),
            entities={},
            values={
                "sources": found.sources.astype(np.float64),
                "popularity": counters.sums[found.rows, 1],
            },
            features=features,
            order=np.empty((n, 0), np.int64),
            late=np.zeros(n, np.bool_),
        )

    def _use(self, loaded: _Loaded) -> None:
        self._items, self._scoring = loaded.items, loaded.scoring
        self._version_metric.inc(loaded.items.version - self._version)
        self._version = loaded.items.version

    def _load(self, found: ModelVersion, scoring: Scoring) -> _Loaded:
        items = LiveItems.of(found.version, ItemIndex.load(found.path), self._popular.items)
        return _Loaded(items, scoring)

    def _follow(self) -> None:
        """Load each newer version beside the running one."""
        while not self._stop.wait(self._options.reload_ms / 1_000):
            try:
                found = find_version(self._options.models, self._options.name)
                if found.version <= self._items.version or found.version in self._seen:
                    continue
                self._seen.add(found.version)
                loaded = self._load(found, self._scoring)
                if self._options.follows:
                    loaded = _Loaded(loaded.items, self._make(found))
                    loaded.scoring.open(self._context)
            except (RepositoryError, ModelError, IndexFileError) as exc:
                logger.warning("version ignored: %s", exc)
                continue
            self._loaded = loaded

    def _swap(self) -> None:
        loaded, self._loaded = self._loaded, None
        if loaded is not None:
            old = self._scoring
            self._use(loaded)
            self._items.take(dict(self._popular.items.items()))
            if old is not loaded.scoring:
                old.close()
            logger.info("items and model of version %d", loaded.items.version)


def _wanted(document: dict[str, Any], most: int) -> int:
    wanted = document.get("items")
    return min(most, wanted if type(wanted) is int and wanted > 0 else 20)


def check_columns(columns: Sequence[str], request_columns: Sequence[str]) -> list[str]:
    """The model's features that a ranking stage cannot make."""
    known = {*request_columns, *FEATURES}
    return [name for name in columns if name not in known]
