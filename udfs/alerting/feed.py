"""From a scored batch to the episodes' operator: a side output that other jobs lack."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pyflink.common import Row
from pyflink.datastream import OutputTag

from udfs.alerting.operator import SCORED
from udfs.alerting.scored import ScoredColumns
from udfs.batches.batch import FeatureBatch
from udfs.batches.records import Verdict


@dataclass(frozen=True, slots=True)
class EpisodeFeed:
    """Hands scored columns to the buckets of their entities.

    Attributes:
        columns: Takes them from a batch.
        route: The label of an entity's bucket.
    """

    columns: ScoredColumns
    route: Callable[[str], int]

    def parts(
        self,
        batch: FeatureBatch,
        verdict: Verdict,
        reasons: Mapping[int, list[dict[str, Any]]],
    ) -> Iterator[tuple[OutputTag, Row]]:
        """``Row(bucket, ScoredBatch)`` for each bucket, as PyFlink wants a side output."""
        scored = self.columns.of(batch, verdict, reasons)
        rows: dict[int, list[int]] = {}
        for row, entity in enumerate(scored.entities):
            rows.setdefault(self.route(entity), []).append(row)
        for bucket, mine in rows.items():
            yield SCORED, Row(bucket, scored if len(rows) == 1 else scored.select(mine))
