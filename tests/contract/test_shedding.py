"""What shedding and a reader's rate leave of a stream."""

from __future__ import annotations

import json
import time
from typing import Any

import numpy as np
import pytest

from tests.support.flink import Stored, Subtask
from tests.support.outputs import plain
from tests.support.stages import (
    ROUTING,
    PassOn,
    first_stage,
    label_reader,
    next_stage,
    overload,
    routed,
    stage_settings,
)
from tests.support.streams import (
    BUCKETS,
    KAFKA_MS,
    ONE_KEY,
    SCHEMA,
    events,
    labels,
    micro_batch,
    offsets_of,
)
from udfs.overload.shedding import is_kept
from udfs.overload.valve import SHED
from udfs.stages.first import FirstStage
from udfs.stages.labels import LabelReader


def low(number: int, card: str = "c3-0") -> bytes:
    """An event of low priority, of the ones that are not kept."""
    return json.dumps(
        {"id": f"low{number}", "t": KAFKA_MS, "card": card, "kind": "CP", "amount": 1}
        | {"terminal": "t"}
    ).encode()


def ends(outputs: list[Any]) -> dict[str, list[str]]:
    """The ids of events that went on, are duplicates, or were shed."""
    found: dict[str, list[str]] = {"kept": [], "duplicates": [], "shed": []}
    for output in outputs:
        if isinstance(output, tuple):
            tag, row = output
            assert tag is SHED
            found["shed"] += [json.loads(value)["event_id"] for _, value in row[0]]
        else:
            found["kept"] += output[1].ids
            found["duplicates"] += [json.loads(v)["event_id"] for _, v in output[1].duplicates]
    return found


@pytest.mark.parametrize("before", ["features", "scoring"])
def test_an_event_that_was_shed_and_comes_again(before: str) -> None:
    """Shed before the features it is forgotten, before the scoring it is known."""
    gone = next(n for n in range(40) if not is_kept(f"low{n}", 0.3))
    one = micro_batch(BUCKETS[0], [low(gone)], 1)
    again = micro_batch(BUCKETS[0], [low(gone)], 2)

    def run(stored: Stored | None, sheds: bool, element: Any) -> tuple[Any, Stored]:
        chosen = {"overload": overload(before)} if sheds else {}
        one_key = stage_settings("card", schema=ONE_KEY, scoring=PassOn(), **chosen)
        subtask = Subtask(FirstStage(**one_key), stored)
        return ends(subtask.run(element)), subtask.snapshot()

    found, stored = run(None, True, one)
    assert found == {"kept": [], "duplicates": [], "shed": [f"low{gone}"]}
    found, _ = run(stored, False, again)
    assert found["kept" if before == "features" else "duplicates"] == [f"low{gone}"]


def test_features_stay_right_if_events_are_shed_before_the_scoring() -> None:
    """Whatever is shed, what is scored has the features that it has when nothing is."""
    stream = routed()
    whole = Subtask(next_stage()).run_all(stream)
    sheds = Subtask(next_stage(overload=overload("scoring"))).run_all(stream)
    expected = {tuple(p): f for _, b in whole for p, f in zip(b.positions, b.features, strict=True)}
    kept = [o[1] for o in sheds if not isinstance(o, tuple)]
    rows = [(tuple(p), f) for b in kept for p, f in zip(b.positions, b.features, strict=True)]
    assert 0 < len(rows) < len(expected)
    shed = [json.loads(value) for o in sheds if isinstance(o, tuple) for _, value in o[1][0]]
    order = {tuple(p): o for _, b in whole for p, o in zip(b.positions, b.order, strict=True)}
    for document in shed:  # what is scored later can be recomputed: it is known what it has seen
        source = document["source"]
        (arrived,) = (
            o for p, o in order.items() if p[:2] == (source["partition"], source["offset"])
        )
        assert [*document["order"].values()] == arrived.tolist()
    for place, features in rows:
        np.testing.assert_array_equal(features, expected[place])
    gone = {i for o in sheds if isinstance(o, tuple) for i in ends([o])["shed"]}
    assert gone | {i for b in kept for i in b.ids} == {i for _, b in whole for i in b.ids}
    refused = [r for _, b in whole for r in (*b.dead_letters, *b.duplicates)]
    assert [r for b in kept for r in (*b.dead_letters, *b.duplicates)] == refused


@pytest.mark.parametrize("reader", ["events", "labels"])
def test_a_source_with_a_rate_is_read_no_faster(reader: str) -> None:
    """And nothing is dropped: all that it waits for comes."""
    stream = events() if reader == "events" else labels()
    many = LabelReader(SCHEMA, ROUTING, "labels", 400) if reader == "labels" else None
    limited = Subtask(many or first_stage(rate=400))
    free = Subtask(label_reader() if reader == "labels" else first_stage())
    began_s = time.monotonic()
    found = plain(limited.run_all(stream))
    took_s = time.monotonic() - began_s
    records = sum(len(offsets_of(element)) for element in stream)
    assert took_s > (records - len(offsets_of(stream[-1]))) / 400 - 0.1
    assert found == plain(free.run_all(stream))
