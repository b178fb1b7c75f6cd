"""What is remembered of a store's answers."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from udfs.definition.enrichment import CacheSpec

__all__ = ["Cache", "Found"]


@dataclass(frozen=True, slots=True)
class Found:
    """What a store said of a key.

    Attributes:
        values: A number for each field; NaN is missing.
        is_there: Whether the store has the key.
        is_sound: Whether its values could be read.
    """

    values: tuple[float, ...]
    is_there: bool = True
    is_sound: bool = True


class Cache:
    """The last answers of a store.

    Args:
        spec: How many, for how long.
        clock: Monotonic seconds.
    """

    def __init__(self, spec: CacheSpec, clock: Callable[[], float] = time.monotonic) -> None:
        self._spec = spec
        self._clock = clock
        self._kept: dict[str, tuple[float, Found]] = {}

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: str) -> Found | None:
        """What is known of a key, if it is not too old."""
        kept = self._kept.get(key)
        if kept is None:
            return None
        if kept[0] <= self._clock():
            del self._kept[key]
            return None
        return kept[1]

    def put(self, key: str, found: Found) -> None:
        """Remember an answer; one that is absent or unreadable for ``negative_ttl`` only."""
        is_good = found.is_there and found.is_sound
        ttl_ms = self._spec.ttl if is_good else self._spec.negative_ttl
        self._kept.pop(key, None)
        if ttl_ms == 0:
            return
        if len(self._kept) >= self._spec.entries:
            del self._kept[next(iter(self._kept))]
        self._kept[key] = (self._clock() + ttl_ms / 1_000, found)
