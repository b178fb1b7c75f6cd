"""The counts of look-ups as Flink's metrics."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import astuple, fields
from typing import Any

from udfs.definition.enrichment import LookupSpec
from udfs.enrichment.lookups import LookupCounts

__all__ = ["LookupMetrics"]


class LookupMetrics:
    """Counters of each look-up, in a group ``lookup.<name>``.

    Only the operator's own thread may call this: Flink's counters are not the event loop's.

    Args:
        specs: The look-ups.
        metrics: The operator's metric group.
    """

    def __init__(self, specs: Iterable[LookupSpec], metrics: Any) -> None:
        names = [field.name for field in fields(LookupCounts)]
        groups = [metrics.add_group("lookup", spec.name) for spec in specs]
        self._counters = [[group.counter(f"lookup_{name}") for name in names] for group in groups]
        self._told = [astuple(LookupCounts()) for _ in groups]

    def tell(self, counts: list[LookupCounts]) -> None:
        """Add what came since the last time."""
        for n, (counters, count) in enumerate(zip(self._counters, counts, strict=True)):
            now = astuple(count)
            for counter, new, old in zip(counters, now, self._told[n], strict=True):
                if new != old:
                    counter.inc(new - old)
            self._told[n] = now
