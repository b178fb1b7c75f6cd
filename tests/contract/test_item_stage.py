"""Popularity of items, published as it is learned."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.flink import Subtask
from tests.support.purchases import small_index
from tests.support.streams import BUCKETS, micro_batch
from udfs.ranking.item_stage import ItemStage
from udfs.ranking.live_popularity import ItemPopularity


class TestItemStage:
    @pytest.fixture
    def stage(self, tmp_path: Path) -> ItemStage:
        small_index().save(tmp_path)
        return ItemStage(tmp_path, {"purchase": 1.0, "like": 2.0}, 1_000, BUCKETS)

    def bought(self, item: str, after_ms: int, kind: str = "purchase") -> bytes:
        document = {"kind": kind, "item": item, "event_time_ms": small_index().as_of_ms + after_ms}
        return json.dumps(document).encode()

    def published(self, outputs: list[Any]) -> dict[str, ItemPopularity]:
        """The newest record of each item."""
        pairs = [pair for row in outputs for pair in row[0]]
        return {k.decode(): ItemPopularity.of_record(json.loads(v)) for k, v in pairs}

    def test_it_first_publishes_what_the_version_knows(self, stage: ItemStage) -> None:
        subtask, found = Subtask(stage), dict[str, ItemPopularity]()
        for bucket in BUCKETS:
            subtask.run(micro_batch(bucket, [b"{}"], 0))
        found = self.published(subtask.fire())
        index = small_index()
        for row, item in enumerate(index.ids.tolist()):
            if index.popularity[row, 0] > 0:
                sums = found[item].sums_at(index.as_of_ms)
                assert sums == pytest.approx(index.popularity[row], rel=1e-9)
        assert len(found) == np.count_nonzero(index.popularity[:, 0])

    def test_purchases_add_to_it_also_across_a_restart(self, stage: ItemStage) -> None:
        item = str(small_index().ids[0])
        first = [self.bought(item, 10), self.bought("new", 20), b"{", self.bought(item, -10)]
        second = [self.bought(item, 30, "like"), self.bought("new", 5), self.bought("x", 1, "view")]
        whole = Subtask(stage)
        whole.run(micro_batch(3, [*first, *second], 0))
        expected = self.published(whole.fire())
        before = Subtask(stage)
        before.run(micro_batch(3, first, 0))
        after = Subtask(stage, before.snapshot())
        got = self.published(after.run(micro_batch(3, second, 4)) + after.end())
        assert got[item] == expected[item] and got["new"] == expected["new"]
        assert got["new"].last_ms == small_index().as_of_ms + 20
        assert "x" not in got
