"""The places in a bucket's order of arrival, and what they tell of events that are gone."""

from __future__ import annotations

from zlib import crc32

import numpy as np

from jobs.features.columns import Source
from jobs.features.replay import Rows
from udfs.batches.buckets import sql_buckets
from udfs.batches.events import IntArray
from udfs.definition.schema import Schema


class Places:
    """The places at one stage.

    Args:
        schema: The job's schema.
        source: Its topics.
        rows: The event of each prediction, -1 where there is none.
        stage: The stage's number.
        buckets: How many buckets the job has.
    """

    def __init__(
        self, schema: Schema, source: Source, rows: Rows, stage: int, buckets: int
    ) -> None:
        self._order = source.predictions.order[:, stage]
        self._name = schema.stages[stage]
        if stage == 0:
            self._of_bucket: IntArray = sql_buckets(source.predictions.keys, buckets)
        else:
            entities = source.events.entities[self._name]
            codes = np.array([crc32(n.encode()) % buckets for n in entities.names], np.int64)
            known = entities.codes[np.maximum(rows, 0)]
            self._of_bucket = np.where(rows >= 0, codes[known], -1)

    def cause(self, row: int) -> str:
        """What the places before that of a prediction say of a difference; empty if nothing."""
        own = self._order[row]
        if own < 0:
            return f"other settings: the prediction has no place at stage {self._name}"
        places = self._order[self._of_bucket == self._of_bucket[row]]
        if np.count_nonzero(places == own) > 1:
            return (
                f"two predictions have place {own} at stage {self._name}: the job began anew "
                "without its state"
            )
        gap = int(own - np.count_nonzero(places < own))
        if gap > 0:
            return (
                f"{gap:,} events came to stage {self._name} before it that have no prediction and "
                "event in the topics: retention, or predictions that are not written yet"
            )
        return ""
