"""Look-ups: features out of Redis or PostgreSQL, a whole batch at a time, while it is scored.

What a batch needs and the cache does not have is asked for in one call. Batches that want the same
key at the same time share it. A batch waits for ``deadline`` at most; an answer that comes later is
not lost but cached. A store that is down is left alone for a moment after some failures, and then
asked by one call at a time until it answers: the job never waits for it longer than the deadline.

An event whose value could not be had gets the default, or none, and its prediction says so. A key
that the store does not have is no failure: it gets the same, unmarked.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from model_server.breaker import BreakerOptions, CircuitBreaker, Permit
from model_server.errors import CircuitOpen
from udfs.batches.batch import FeatureBatch
from udfs.batches.events import FloatArray
from udfs.definition.enrichment import LookupField, LookupSpec
from udfs.enrichment.lookup_cache import Cache, Found
from udfs.enrichment.store import Answer, Store
from udfs.enrichment.stores import store_of

__all__ = ["Lookup", "LookupCounts", "Lookups"]

logger = logging.getLogger(__name__)

CALLS_AT_ONCE = 8
"""Open calls of one look-up; further ones wait within their batch's deadline."""

_BREAKER = BreakerOptions(failure_threshold=3, open_ms=500.0, trial_calls=1)
_CALL_S = 1.0
"""A call that takes longer, or twice the deadline if that is more, is given up."""

BoolArray = npt.NDArray[np.bool_]


@dataclass(slots=True)
class LookupCounts:
    """Events by what became of their look-up, since the start; each is a hit or a miss.

    Attributes:
        hits: Known from the cache, or without a key.
        misses: The store was to be asked.
        negative: The store does not have the key.
        errors: No value, as the store failed, is left alone or has one that cannot be read.
        timeouts: No value within the deadline.
    """

    hits: int = 0
    misses: int = 0
    negative: int = 0
    errors: int = 0
    timeouts: int = 0


@dataclass(frozen=True, slots=True)
class _Call:
    """A call that is open, and the breaker's leave for it."""

    answer: asyncio.Task[dict[str, Found]]
    permit: Permit


class Lookup:
    """One look-up. Belongs to one event loop; any thread may read the counts.

    Args:
        spec: What the user declared.
        store: Is asked.
        clock: Monotonic seconds.
    """

    def __init__(
        self, spec: LookupSpec, store: Store, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.spec = spec
        self._store = store
        self._cache = Cache(spec.cache, clock)
        self._breaker = CircuitBreaker(_BREAKER, clock=clock)
        self._places = asyncio.Semaphore(CALLS_AT_ONCE)
        self._call_s = max(_CALL_S, 2 * spec.deadline / 1_000)
        self._asked: dict[str, _Call] = {}
        self.counts = LookupCounts()
        self._is_down = False
        values = tuple(_number(field, None) for field in spec.fields)
        self._absent = Found(values, is_there=False)
        self._unsound = Found(values, is_sound=False)

    async def of(self, keys: Sequence[str | None]) -> tuple[FloatArray, BoolArray]:
        """The features of a batch, within the deadline.

        Args:
            keys: What to look up, n; with None or nothing there is nothing to find.

        Returns:
            float64 (n, fields), NaN is missing; and which rows are without an answer, (n,).
        """
        known: dict[str | None, Found] = {None: self._absent, "": self._absent}
        missing: list[str] = []
        for key in dict.fromkeys(keys):
            if key and (found := self._cache.get(key)):
                known[key] = found
            elif key:
                missing.append(key)
        hits = sum(key in known for key in keys)
        late = await self._ask(missing, known) if missing else frozenset[str]()
        rows = [known.get(key, self._unsound) for key in keys]
        self._count(keys, rows, hits, late)
        values = np.array([row.values for row in rows], np.float64).reshape(len(rows), -1)
        return values, np.array([not row.is_sound for row in rows], np.bool_)

    async def _ask(self, missing: list[str], known: dict[str | None, Found]) -> frozenset[str]:
        """Add what the store says in time; returns the keys it has not answered by then.

        A late call is a failed one to the breaker: who waits for it loses the time either way.
        """
        calls = self._calls(missing)
        if not calls:
            return frozenset()
        answers = {call.answer for call in calls.values()}
        done, _ = await asyncio.wait(answers, timeout=self.spec.deadline / 1_000)
        for key, call in calls.items():
            if call.answer not in done:
                call.permit.fail()
            elif key in call.answer.result():
                known[key] = call.answer.result()[key]
        return frozenset(key for key, call in calls.items() if call.answer not in done)

    def _calls(self, missing: list[str]) -> dict[str, _Call]:
        """The call that each key is asked by: one that is open, or a new one for all others."""
        calls = {key: self._asked[key] for key in missing if key in self._asked}
        new = [key for key in missing if key not in calls]
        if new:
            try:
                permit = self._breaker.acquire()
            except CircuitOpen:
                return calls
            fetching = asyncio.get_running_loop().create_task(self._fetch(new, permit))
            call = _Call(fetching, permit)
            calls |= dict.fromkeys(new, call)
            self._asked |= dict.fromkeys(new, call)
        return calls

    async def _fetch(self, keys: list[str], permit: Permit) -> dict[str, Found]:
        """Ask the store; nothing if it fails."""
        try:
            async with asyncio.timeout(self._call_s), self._places:
                answers = await self._store.fetch(keys)
        except Exception as exc:
            permit.fail()
            self._tell(f"{type(exc).__name__} {exc}".strip())
            return {}
        else:
            permit.succeed()
            self._tell(None)
        finally:
            permit.abandon()  # cancelled: nothing is known
            for key in keys:
                del self._asked[key]
        found = {key: self._found(a) for key, a in zip(keys, answers, strict=True)}
        for key, one in found.items():
            self._cache.put(key, one)
        return found

    def _found(self, answer: Answer) -> Found:
        if answer is None:
            return self._absent
        if isinstance(answer, Exception):
            return self._unsound
        try:
            return Found(tuple(_number(f, answer.get(f.name)) for f in self.spec.fields))
        except (ValueError, TypeError, OverflowError):
            return self._unsound

    def _tell(self, failure: str | None) -> None:
        """Log the beginning and the end of an outage."""
        if failure is not None and not self._is_down:
            logger.warning("look-up %r fails: %s", self.spec.name, failure)
        if failure is None and self._is_down:
            logger.warning("look-up %r answers again", self.spec.name)
        self._is_down = failure is not None

    def _count(
        self, keys: Sequence[str | None], rows: list[Found], hits: int, late: frozenset[str]
    ) -> None:
        counts = self.counts
        timeouts = sum(key in late for key in keys) if late else 0
        counts.hits += hits
        counts.misses += len(rows) - hits
        counts.negative += sum(not row.is_there for row in rows)
        counts.errors += sum(not row.is_sound for row in rows) - timeouts
        counts.timeouts += timeouts

    async def connect(self) -> None:
        """Open a connection, so that the first batch need not; a failure is logged."""
        try:
            async with asyncio.timeout(self._call_s):
                await self._store.connect()
        except Exception as exc:
            self._tell(f"{type(exc).__name__} {exc}".strip())

    async def close(self) -> None:
        """Give up the open calls and close the connections."""
        calls = {call.answer for call in self._asked.values()}
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        await self._store.close()


class Lookups:
    """All look-ups of a job. Belongs to one event loop; any thread may read the counts.

    Args:
        specs: What the user declared.

    Raises:
        MissingClient: A store's client is not installed.
    """

    def __init__(self, specs: Iterable[LookupSpec]) -> None:
        self._lookups = [Lookup(spec, store_of(spec)) for spec in specs]

    @property
    def counts(self) -> list[LookupCounts]:
        """Those of each look-up, in the order declared."""
        return [lookup.counts for lookup in self._lookups]

    async def connect(self) -> None:
        """Connect to every store that is there."""
        await asyncio.gather(*(lookup.connect() for lookup in self._lookups))

    async def enrich(self, batch: FeatureBatch) -> FeatureBatch:
        """The batch with the look-ups' features, marked where one fell back."""
        if not self._lookups:
            return batch
        asked = (look.of(batch.entities[look.spec.key]) for look in self._lookups)
        answers = await asyncio.gather(*asked)
        marks = [""] * len(batch)
        for look, (_, failed) in zip(self._lookups, answers, strict=True):
            for row in np.flatnonzero(failed).tolist():
                marks[row] += f'{"," if marks[row] else ""}"{look.spec.name}"'
        columns = [batch.features, *(values for values, _ in answers)]
        return replace(batch, features=np.concatenate(columns, axis=1), lookup_fallbacks=marks)

    async def close(self) -> None:
        """Close every store."""
        for lookup in self._lookups:
            await lookup.close()


_TRUTH = {"true": 1.0, "1": 1.0, "t": 1.0, "false": 0.0, "0": 0.0, "f": 0.0}


def _number(field: LookupField, value: Any) -> float:
    """A value as a feature.

    Raises:
        ValueError, TypeError, OverflowError: It is none of the field's type.
    """
    if value is None:
        return math.nan if field.default is None else float(field.default)
    if isinstance(value, bytes):
        value = value.decode()
    is_truth = field.type == "bool"
    number = _TRUTH.get(str(value).lower(), math.nan) if is_truth else float(value)
    if not math.isfinite(number) or (field.type == "int" and not number.is_integer()):
        raise ValueError(f"{field.name} must be {field.type}, is {value!r}")
    return number
