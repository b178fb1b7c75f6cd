"""How the last keyed stage of a ranking job answers: candidates of a request, one model call.

It stands where scoring stands in a job that scores events, and uses the same scoring for its own
rows: the candidates of a request are a batch.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
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
from udfs.ranking.candidates import CandidateOptions
from udfs.ranking.features import FEATURES
from udfs.ranking.index import IndexFileError, ItemIndex
from udfs.ranking.live_items import LiveItems
from udfs.ranking.output import expired_reply
from udfs.ranking.popular_feed import PopularFeed
from udfs.ranking.requests import Asked, candidate_batch, has_expired, warm_up
from udfs.ranking.user_states import BatchUsers, IdleUsers
from udfs.ranking.users import UserLimits
from udfs.ranking.views import view_of
from udfs.scoring.base import Scoring
from udfs.scoring.pairs import pairs

__all__ = ["RankingOptions", "RankingScoring"]

logger = logging.getLogger(__name__)

_LOAD_S = 10.0
_JOIN_S = 10.0


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
        topic: Of the events.
        max_rows: Rows that are scored together at most, no fewer than a request has.
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
    topic: str
    max_rows: int
    follows: bool


@dataclass(frozen=True)
class _Loaded:
    """A version that was loaded beside the running one."""

    items: LiveItems
    scoring: Scoring


class RankingScoring:
    """Ranks candidates for each request of a batch, and learns from its interactions.

    Rows are taken in their order, so that a request sees what came before it; the candidates of
    all requests are scored together. A request whose caller waits no longer is answered without
    items and without work. Users lie in Flink's
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
        self._opened = ExitStack()

    def open(self, runtime_context: RuntimeContext) -> None:
        """Load the items and what scores; Flink has restored the state by now.

        Raises:
            RepositoryError: there is no version, or it cannot be used.
        """
        self._opened = ExitStack()
        options = self._options
        self._context = runtime_context
        descriptor = MapStateDescriptor("users", Types.STRING(), Types.PICKLED_BYTE_ARRAY())
        self._users = runtime_context.get_map_state(descriptor)
        metrics = runtime_context.get_metrics_group()
        self._requests = metrics.counter("requests")
        self._expired_requests = metrics.counter("expired_requests")
        self._interactions = metrics.counter("interactions")
        self._forgotten = metrics.counter("users_forgotten")
        self._idle = IdleUsers(options.limits.idle_ms)
        self._version_metric = metrics.counter("item_version")
        self._popular = PopularFeed(options.popularity, options.kafka)
        self._popular.start()
        self._opened.callback(self._popular.stop)
        self._popular.wait_loaded(_LOAD_S)  # without it, with the version's own counts
        places = {name: n for n, name in enumerate((*options.request_columns, *FEATURES))}
        self._order = np.array([places[name] for name in options.columns], np.intp)
        found = find_version(options.models, options.name, options.version)
        loaded = self._load(found, self._make(found))
        self._version = 0
        self._loaded: _Loaded | None = None
        self._use(loaded)
        self._opened.callback(self._close_scoring)
        self._scoring.open(runtime_context)
        warm_up(self._items, options.candidates)
        self._stop = Event()
        self._seen: set[int] = set()
        if options.version is None:
            follower = Thread(target=self._follow, name="streamscore-versions", daemon=True)
            follower.start()
            self._opened.callback(follower.join, _JOIN_S)
            self._opened.callback(self._stop.set)

    def close(self) -> None:
        """Stop what runs beside the stage."""
        self._opened.close()

    def _close_scoring(self) -> None:
        self._scoring.close()
        if self._loaded is not None and self._loaded.scoring is not self._scoring:
            self._loaded.scoring.close()

    def take(self, bucket: int, batch: FeatureBatch, timers: TimerService) -> Iterator[Row]:
        """Answer a batch's requests, now or later; Flink's current key is the bucket."""
        self._swap()
        self._items.take(self._popular.items.take_changed())
        if batch.dead_letters or batch.duplicates:
            refused = FeatureBatch.empty((), ())
            refused.dead_letters.extend(batch.dead_letters)
            refused.duplicates.extend(batch.duplicates)
            yield from self._scoring.take(bucket, refused, timers)
        asked, expired = self._read(bucket, batch)
        if expired:
            yield Row(pairs(expired), [], [], [])
        # Whole requests, and no more rows than a call takes.
        step = max(1, self._options.max_rows // self._options.candidates.count)
        for start in range(0, len(asked), step):
            some = asked[start : start + step]
            found = candidate_batch(self._items, batch, some, self._options.candidates, self._order)
            yield from self._scoring.take(bucket, found, timers)

    def _read(
        self, bucket: int, batch: FeatureBatch
    ) -> tuple[list[Asked], list[tuple[str, bytes]]]:
        """The requests of a batch, each with its user as of then; interactions are taken."""
        users = BatchUsers(self._users, self._options.limits)
        times, now_ms = batch.times.tolist(), time.time_ns() // 1_000_000
        asked, expired = list[Asked](), list[tuple[str, bytes]]()
        for row, (user, raw) in enumerate(zip(batch.keys, batch.raw, strict=True)):
            document = orjson.loads(raw)
            kind, item = document["kind"], document.get("item")
            if kind == "request" and has_expired(document, now_ms):
                expired.append(self._expired(batch, row, document))
            elif kind == "request":
                view = view_of(self._items.index, users.of(user, times[row]), times[row])
                asked.append(Asked(row, document, view))
            elif kind in self._options.kinds and item:
                self._interactions.inc(1)
                users.buy(user, times[row], item, document.get("price"))
        users.write()
        if times:
            self._forgotten.inc(self._idle.sweep(bucket, max(times), self._users))
        self._requests.inc(len(asked))
        self._expired_requests.inc(len(expired))
        return asked, expired

    def _expired(
        self, batch: FeatureBatch, row: int, document: dict[str, Any]
    ) -> tuple[str, bytes]:
        options = self._options
        return expired_reply(
            document.get("gateway") or "", batch, row, options.topic, options.name,
            self._items.version,
        )  # fmt: skip

    def on_timer(self, bucket: int, timestamp_ms: int, timers: TimerService) -> Iterator[Row]:
        """What was asked for may have been answered."""
        return self._scoring.on_timer(bucket, timestamp_ms, timers)

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
                    # Without look-ups it makes nothing of Flink's, which it could not here.
                    loaded.scoring.open(self._context)
            except (RepositoryError, ModelError, IndexFileError) as exc:
                logger.warning("version ignored: %s", exc)
                continue
            self._loaded = loaded
        self._close_scoring()  # also what was loaded since

    def _swap(self) -> None:
        loaded, self._loaded = self._loaded, None
        if loaded is not None:
            old = self._scoring
            self._use(loaded)
            self._items.take(dict(self._popular.items.items()))
            if old is not loaded.scoring:
                old.close()
            logger.info("items and model of version %d", loaded.items.version)


def check_columns(columns: Sequence[str], request_columns: Sequence[str]) -> list[str]:
    """The model's features that a ranking stage cannot make."""
    known = {*request_columns, *FEATURES}
    return [name for name in columns if name not in known]
