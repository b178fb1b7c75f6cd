"""Labels: each ends in one place, in the bucket of its key."""

from __future__ import annotations

import json

from tests.support.flink import Subtask
from tests.support.stages import ROUTING, label_reader, next_stage
from tests.support.streams import BUCKETS, labels, offsets_of
from udfs.batches.batch import FeatureBatch, LabelBatch


class TestLabelReader:
    def test_every_label_ends_in_exactly_one_place(self) -> None:
        for element in labels():
            outputs = Subtask(label_reader()).run(element)
            read = [b for _, b in outputs if isinstance(b, LabelBatch)]
            letters = [d for _, b in outputs if isinstance(b, FeatureBatch) for d in b.dead_letters]
            assert sum(len(b.ids) for b in read) + len(letters) == len(offsets_of(element))

    def test_each_label_goes_to_the_bucket_of_its_key(self) -> None:
        outputs = Subtask(label_reader()).run_all(labels())
        for bucket, batch in outputs:
            if isinstance(batch, LabelBatch):
                assert {ROUTING.of(e) for e in batch.entities} == {bucket}
        assert {bucket for bucket, _ in outputs} == set(BUCKETS)

    def test_a_stage_passes_refused_labels_on(self) -> None:
        outputs = Subtask(label_reader()).run_all(labels())
        refused = [d for _, b in outputs if isinstance(b, FeatureBatch) for d in b.dead_letters]
        passed = [b for _, b in Subtask(next_stage()).run_all(outputs)]
        assert [d for b in passed for d in b.dead_letters] == refused
        assert {json.loads(d)["code"] for _, d in refused} == {"missing_field"}
