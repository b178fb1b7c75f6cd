"""Feast's online store as a store of look-ups, through Feast's own client."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any, TypeVar

from udfs.definition.enrichment import FeastSpec
from udfs.enrichment.store import Answer, canonical

__all__ = ["FeastStore"]

_THREADS = 4

T = TypeVar("T")


class FeastStore:
    """Values by one ``get_online_features`` per batch, in a thread: Feast's client blocks.

    A call that is given up goes on in its thread; with ``_THREADS`` of them the next ones wait.

    Args:
        spec: Where they are.
        names: The features of the view that are wanted.
    """

    def __init__(self, spec: FeastSpec, names: Sequence[str]) -> None:
        from feast import FeatureStore

        self._open = FeatureStore
        self._spec = spec
        self._names = tuple(names)
        self._threads = ThreadPoolExecutor(_THREADS, "streamscore-feast")

    @cached_property
    def _store(self) -> Any:
        return self._open(repo_path=str(self._spec.repo))

    async def fetch(self, keys: Sequence[str]) -> Sequence[Answer]:
        """See ``Store``; a key that is no whole number, if it must be one, is not there."""
        names = [canonical(key, self._spec.key_type) for key in keys]
        wanted = [name for name in names if name is not None]
        rows = await self._run(lambda: self._ask(wanted)) if wanted else []
        found = dict(zip(wanted, rows, strict=True))
        return [None if name is None else found[name] for name in names]

    def _ask(self, keys: list[str]) -> list[Answer]:
        kind: Callable[[str], str | int] = int if self._spec.key_type == "int" else str
        answer = self._store.get_online_features(
            features=[f"{self._spec.view}:{name}" for name in self._names],
            entity_rows=[{self._spec.entity: kind(key)} for key in keys],
        ).to_dict()
        rows = zip(*(answer[name] for name in self._names), strict=True)
        return [
            None if all(v is None for v in row) else dict(zip(self._names, row, strict=True))
            for row in rows
        ]

    async def connect(self) -> None:
        """See ``Store``; reads Feast's registry."""
        await self._run(lambda: self._store)

    async def _run(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    async def close(self) -> None:
        """See ``Store``."""
        self._threads.shutdown(wait=False, cancel_futures=True)
