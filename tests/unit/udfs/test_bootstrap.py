"""State made from a history is what the job would have left, whatever the history."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from hypothesis import given, settings
from hypothesis import strategies as st

from udfs.batches.events import FloatArray, IntArray
from udfs.definition.schema import Schema
from udfs.features.identities import Identities
from udfs.features.keyed import KeyedStage
from udfs.features.states import BucketStates
from udfs.offline import bootstrap
from udfs.offline.bootstrap import Bootstrap, Coded, PastEvents
from udfs.offline.state_files import read_blocks, write_block

MINUTE_MS = 60_000
FIELDS = [
    {"name": "id", "type": "string"},
    {"name": "time", "type": "int"},
    {"name": "card", "type": "string"},
    {"name": "shop", "type": "string"},
    {"name": "amount", "type": "float"},
]
WINDOW = {"value": "amount", "windows": ["5m", "1h"], "aggregates": ["count", "sum", "max"]}
SCHEMA = Schema.model_validate(
    {
        "event": {"id": "id", "time": {"field": "time"}, "dedupe_within": "1h", "fields": FIELDS},
        "key": "card",
        "features": {
            "windows": [
                {"prefix": "card", "key": "card", **WINDOW},
                {"prefix": "shop", "key": "shop", **WINDOW},
            ]
        },
    }
)
BUCKETS = (3, 5)

ROWS = st.tuples(
    st.integers(0, 400), st.sampled_from("abcd"), st.sampled_from("xyz"), st.integers(0, 60)
)
"""Minute, card, shop, id; the amount is the id's."""


class MapState(dict[str, bytes]):
    def is_empty(self) -> bool:
        return not self

    def put(self, name: str, value: bytes) -> None:
        self[name] = value

    def put_all(self, entries: dict[str, bytes]) -> None:
        self.update(entries)

    def remove(self, name: str) -> None:
        self.pop(name, None)


State = defaultdict[tuple[str, int], MapState]


def bucket_of(_stage: str, entities: list[str]) -> IntArray:
    return np.array([BUCKETS[ord(name) % 2] for name in entities], np.int64)


def coded(names: list[str]) -> Coded:
    codes, distinct = pd.factorize(np.array(names, object))
    return Coded(codes.astype(np.int64), list(distinct))


def past(rows: list[tuple[Any, ...]]) -> PastEvents:
    minutes, cards, shops, ids = (list(column) for column in zip(*rows, strict=True))
    return PastEvents(
        np.array(minutes, np.int64) * MINUTE_MS,
        {"card": coded(cards), "shop": coded(shops)},
        {"amount": np.array(ids, float) / 7},
        Identities.without_content([str(n) for n in ids]),
    )


def observe(state: State, rows: list[tuple[Any, ...]]) -> list[FloatArray]:
    """What the job does with events one after the other; none for repeats."""
    found = []
    stages = [KeyedStage(SCHEMA, name) for name in SCHEMA.stages]
    kept: dict[tuple[str, int], BucketStates] = {}
    for row in rows:
        event, parts = past([row]), []
        for stage in stages:
            entity = event.entities[stage.name].names
            bucket = int(bucket_of(stage.name, entity)[0])
            place = stage.name, bucket
            if place not in kept:
                kept[place] = BucketStates(stage, state[place], 10_000, 5)
            ids = event.identities if stage.dedupes else Identities.none(1)
            observed = stage.observe(kept[place].of(bucket), entity, event.times, event.values, ids)
            if not len(observed.kept):
                break
            kept[place].add(bucket, entity, observed.entries)
            parts.append(observed.features)
        else:
            found.append(np.concatenate(parts, axis=1))
    return found


@settings(max_examples=60)
@given(
    st.lists(ROWS, min_size=1, max_size=60),
    st.lists(ROWS, min_size=1, max_size=30),
    st.integers(1, 20),
)
def test_the_rest_has_the_features_of_a_job_that_saw_it_all(
    known: list[tuple[Any, ...]], rest: list[tuple[Any, ...]], chunk: int
) -> None:
    known = sorted(known, key=lambda row: row[0])
    rest = sorted((row[0] + 400, *row[1:]) for row in rest)
    bootstrap.CHUNK_EVENTS, before = chunk, bootstrap.CHUNK_EVENTS
    try:
        made = Bootstrap(SCHEMA, BUCKETS, bucket_of, past(known), None)
        state: State = defaultdict(MapState)
        for block in made.blocks():
            assert not state[block.stage, block.bucket].keys() & block.entries.keys()
            state[block.stage, block.bucket].update(block.entries)
    finally:
        bootstrap.CHUNK_EVENTS = before
    whole: State = defaultdict(MapState)
    kept = len(observe(whole, known))
    assert (made.made.events, made.made.repeats) == (kept, len(known) - kept)
    expected, found = observe(whole, rest), observe(state, rest)
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


@given(st.lists(st.dictionaries(st.text(), st.binary(max_size=50), max_size=5), max_size=4))
def test_files_give_back_their_blocks(blocks: list[dict[str, bytes]]) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.state"
        with path.open("ab") as file:
            for block in blocks:
                write_block(file, block)
        assert list(read_blocks(path)) == blocks
