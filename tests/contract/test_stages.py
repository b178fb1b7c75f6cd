"""The keyed stages: state by bucket, every record in one place, the next key's bucket."""

from __future__ import annotations

import json
import random
from collections import Counter
from typing import Any

import pytest

from tests.support.contract_case import Case
from tests.support.flink import Stored, Subtask
from tests.support.outputs import plain
from tests.support.stages import ROUTING, PassOn, first_stage, next_stage, routed, stage_settings
from tests.support.streams import (
    BUCKETS,
    DOCUMENT,
    ONE_KEY,
    SCHEMA,
    a_record,
    events,
    micro_batch,
    offsets_of,
)
from udfs.batches.batch import FeatureBatch
from udfs.batches.buckets import sql_buckets
from udfs.batches.routing import Routing
from udfs.definition.schema import Schema
from udfs.features.layouts import StateFormatError
from udfs.stages.next import NextStage


@pytest.fixture(params=["FirstStage", "NextStage"])
def keyed(request: pytest.FixtureRequest) -> Case:
    return {
        "FirstStage": Case(first_stage, events),
        "NextStage": Case(next_stage, routed),
    }[request.param]


class TestKeyedStages:
    def test_buckets_may_part_ways(self, keyed: Case) -> None:
        """A rescale: half of the stream on one subtask, then a subtask for each bucket."""
        stream = keyed.stream(1)
        cut = len(stream) // 2
        before = keyed.open()
        got = [(e[0], plain(before.run(e))) for e in stream[:cut]]
        whole = before.snapshot()
        for bucket in BUCKETS:
            mine: Stored = {name: {bucket: of.get(bucket, {})} for name, of in whole.items()}
            subtask = keyed.open(mine)
            got += [(bucket, plain(subtask.run(e))) for e in stream[cut:] if e[0] == bucket]
        uninterrupted = keyed.open()
        expected = [(e[0], plain(uninterrupted.run(e))) for e in stream]
        for bucket in BUCKETS:
            assert [o for b, o in got if b == bucket] == [o for b, o in expected if b == bucket]

    @pytest.mark.parametrize("changed", [{"cached_entries": 1}, {"journal_events": 0}])
    def test_how_state_is_kept_changes_no_output(self, keyed: Case, changed: Any) -> None:
        other = keyed.open(function=keyed.make(**changed))
        assert keyed.run_whole(other) == keyed.expected()

    def test_state_is_plain_bytes_of_each_bucket_alone(self, keyed: Case) -> None:
        subtask = keyed.open()
        subtask.run_all(keyed.stream(1))
        assert subtask.context.stored
        for buckets in subtask.context.stored.values():
            assert set(buckets) <= set(BUCKETS)
            assert not set.intersection(*({k for k in b if k[0] in "el"} for b in buckets.values()))


def identity(key: str, record: bytes) -> int:
    return int(json.loads(record)["source"]["offset"])


class TestFirstStage:
    def test_every_record_ends_in_exactly_one_place(self) -> None:
        subtask = Subtask(first_stage())
        stream = events()
        for element in stream:
            batches = [batch for _, batch in subtask.run(element)]
            offsets = [o for b in batches for o in b.positions[:, 1].tolist()]
            offsets += [identity(*r) for b in batches for r in (*b.dead_letters, *b.duplicates)]
            assert sorted(offsets) == offsets_of(element)

    def test_it_counts_what_it_does(self) -> None:
        subtask = Subtask(first_stage())
        batches = [batch for _, batch in subtask.run_all(events())]
        counted = {name: c.value for name, c in subtask.context.metrics.counters.items()}
        assert (counted.pop("table_records"), counted.pop("table_rejects")) == (0, 0)
        assert counted == {
            "events": sum(map(len, batches)),
            "dead_letters": sum(len(b.dead_letters) for b in batches),
            "duplicates": sum(len(b.duplicates) for b in batches),
        }
        assert min(counted.values()) > 0

    def test_a_batch_of_nothing_but_repeats(self) -> None:
        """As after a failure that replays what was processed already."""
        subtask = Subtask(first_stage())
        rng = random.Random(3)
        records = [a_record(rng, n, "c") for n in range(4)]
        subtask.run(micro_batch(BUCKETS[0], records, 0))
        [(_, batch)] = subtask.run(micro_batch(BUCKETS[0], records, 50))
        assert len(batch) == 0
        assert [identity(*d) for d in batch.duplicates] == [50, 51, 52, 53]

    def test_a_repeat_with_another_content_is_a_dead_letter(self) -> None:
        subtask = Subtask(first_stage())
        record = a_record(random.Random(3), 1, "c")
        subtask.run(micro_batch(BUCKETS[0], [record], 0))
        again = [record.replace(b"{", b"{ "), record]
        [(_, batch)] = subtask.run(micro_batch(BUCKETS[0], again, 50))
        [(key, letter)] = batch.dead_letters
        assert (key, json.loads(letter)["code"]) == ("0-50", "id_conflict")
        assert [identity(*d) for d in batch.duplicates] == [51]

    def test_after_a_change_new_windows_say_since_when(self) -> None:
        before = Subtask(first_stage())
        batch = micro_batch(BUCKETS[0], [a_record(random.Random(3), 9, "c")], 0)
        [(_, first)] = before.run(batch)
        wider = json.loads(json.dumps(DOCUMENT))
        wider["features"]["windows"][0]["windows"] = ["10m", "30d"]
        wider["features"]["windows"][0]["where"] = "amount > 1"
        changed = first_stage(schema=Schema.model_validate(wider))
        after = Subtask(changed, before.snapshot())
        [(_, second)] = after.run(
            micro_batch(BUCKETS[0], [a_record(random.Random(3), 10, "c")], 50)
        )
        assert not first.warming
        since_ms = int(first.times[0])
        assert {name: since.tolist() for name, since in second.warming.items()} == {
            f"card_{aggregate}_{window}": [since_ms]
            for window in ("10m", "30d")
            for aggregate in ("count", "sum", "ratio_to_mean")
        }

    def test_state_of_another_number_of_buckets_is_refused(self) -> None:
        before = Subtask(first_stage())
        batch = micro_batch(BUCKETS[0], [a_record(random.Random(3), 9, "c")], 0)
        before.run(batch)
        after = Subtask(first_stage(routing=Routing((*BUCKETS, 77))), before.snapshot())
        with pytest.raises(StateFormatError, match=r"batch\.buckets was 2, now 3"):
            after.run(batch)

    def test_each_row_goes_to_the_bucket_of_its_next_key(self) -> None:
        for bucket, batch in Subtask(first_stage()).run_all(events()):
            assert {ROUTING.of(t) for t in batch.entities["terminal"]} <= {bucket}

    def test_places_of_arrival_are_counted_per_bucket(self) -> None:
        subtask = Subtask(first_stage())
        places: dict[int, list[int]] = {}
        for element in events():
            found = [o for _, b in subtask.run(element) for o in b.order[:, :1].ravel()]
            places.setdefault(element[0], []).extend(sorted(found))
        for found in places.values():
            assert found == [*range(len(found))]


class TestNextStage:
    def test_nothing_is_lost(self) -> None:
        stream = routed()
        outputs = [b for _, b in Subtask(next_stage()).run_all(stream)]
        given = [b for _, b in stream if isinstance(b, FeatureBatch)]
        for part in (
            lambda b: b.ids,
            lambda b: b.dead_letters,
            lambda b: b.duplicates,
        ):
            assert [x for b in outputs for x in part(b)] == [x for b in given for x in part(b)]
        assert all(b.features.shape[1] == len(SCHEMA.columns) for b in outputs if len(b))

    def test_labels_enter(self) -> None:
        batches = [b for _, b in Subtask(next_stage()).run_all(routed()) if len(b)]
        column = SCHEMA.columns.index("rate_count_1h")
        assert max(b.features[:, column].max() for b in batches) > 0

    def test_a_batch_without_rows_is_passed_on_untouched(self) -> None:
        empty = FeatureBatch.empty(("terminal",), ("amount",))
        subtask = Subtask(next_stage())
        assert subtask.run((BUCKETS[0], empty)) == []
        empty.dead_letters.append(("0-1", b"{}"))
        [(_, batch)] = subtask.run((BUCKETS[0], empty))
        assert (len(batch), batch.dead_letters) == (0, [("0-1", b"{}")])


class TestTheLastStage:
    def test_only_the_last_stage_scores(self) -> None:
        with pytest.raises(AssertionError, match="the last stage scores"):
            first_stage(scoring=PassOn())
        with pytest.raises(AssertionError, match="the last stage scores"):
            NextStage(**stage_settings("terminal"))

    def test_the_first_may_be_the_last(self) -> None:
        last = Subtask(first_stage(schema=ONE_KEY, scoring=PassOn()))
        batches = [batch for _, batch in last.run_all(events())]
        assert {b.features.shape[1] for b in batches if len(b)} == {len(ONE_KEY.columns)}
        others = [batch for _, batch in Subtask(first_stage()).run_all(events())]
        for name in ("ids", "dead_letters", "duplicates"):
            found, expected = (
                Counter(x for b in of for x in getattr(b, name)) for of in (batches, others)
            )
            assert found == expected


def test_records_led_astray_by_their_kafka_key_are_refused() -> None:
    """Each card's records go to the bucket of another card's key: features would be wrong."""
    subtask = Subtask(first_stage(routing=Routing(BUCKETS, by_record_key=True)))
    rng = random.Random(3)
    cards = [f"c{n}" for n in range(12)]
    home = [BUCKETS[n] for n in sql_buckets(cards, len(BUCKETS))]
    assert {*home} == {*BUCKETS}
    records = [a_record(rng, n, card) for n, card in enumerate(cards)]
    rows = subtask.run(micro_batch(BUCKETS[0], records, 0))
    strays = [letter for row in rows for letter in row[1].dead_letters]
    kept = [key for row in rows for key in row[1].keys]
    assert sorted(kept) == sorted(c for c, bucket in zip(cards, home, strict=True) if bucket == 3)
    assert len(strays) == home.count(8)
    assert {json.loads(letter)["code"] for _, letter in strays} == {"key_mismatch"}
