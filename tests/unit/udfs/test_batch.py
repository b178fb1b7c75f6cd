"""A batch may be cut and grown in any way: nothing is lost, doubled or reordered."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from udfs.batches.batch import FeatureBatch, LabelBatch

DEAD = [("0-7", b'{"code":"empty"}'), ("0-8", b"{}")]
TWICE = [("k", b'{"event_id":"e"}')]


def make_batch(n: int, *, refused: bool = True, columns: int = 3) -> FeatureBatch:
    return FeatureBatch(
        keys=[f"k{i % 3}" for i in range(n)],
        ids=[f"e{i}" for i in range(n)],
        raw=[f"raw {i}".encode() for i in range(n)],
        positions=np.arange(3 * n).reshape(n, 3),
        times=np.arange(n) * 10,
        entities={"terminal": [f"t{i}" for i in range(n)]},
        values={"amount": np.arange(n) / 4},
        features=np.arange(n * columns, dtype=np.float64).reshape(n, columns),
        order=np.arange(n).reshape(n, 1) + 100,
        late=np.arange(n) % 3 == 0,
        dead_letters=[*DEAD] if refused else [],
        duplicates=[*TWICE] if refused else [],
    )


def rows_of(batch: FeatureBatch) -> list[tuple[Any, ...]]:
    n = len(batch)
    columns = [
        batch.keys,
        batch.ids,
        batch.raw,
        batch.positions.tolist(),
        batch.times.tolist(),
        *batch.entities.values(),
        *(v.tolist() for v in batch.values.values()),
        batch.features.tolist(),
        batch.order.tolist(),
        batch.late.tolist(),
    ]
    assert {len(c) for c in columns} == {n}
    return list(zip(*columns, strict=True))


def refused(parts: list[FeatureBatch]) -> tuple[list[Any], list[Any]]:
    return (
        [d for part in parts for d in part.dead_letters],
        [d for part in parts for d in part.duplicates],
    )


@given(n=st.integers(1, 12), data=st.data())
@settings(max_examples=60)
def test_select_takes_these_rows_alone(n: int, data: st.DataObject) -> None:
    batch = make_batch(n)
    rows = data.draw(st.lists(st.integers(0, n - 1), max_size=15))
    for given_rows in (rows, np.array(rows, np.intp)):
        part = batch.select(given_rows)
        assert rows_of(part) == [rows_of(batch)[i] for i in rows]
        assert refused([part]) == ([], [])
        assert part.features.shape == (len(rows), 3)


@given(groups=st.lists(st.integers(0, 4), max_size=20))
@settings(max_examples=100)
def test_split_loses_nothing_and_keeps_the_order(groups: list[int]) -> None:
    batch = make_batch(len(groups))
    parts = batch.split(groups)
    for group, part in parts.items():
        mine = [row for row, g in zip(rows_of(batch), groups, strict=True) if g == group]
        assert rows_of(part) == mine
    assert sum(map(len, parts.values())) == len(batch)
    assert refused([*parts.values()]) == (DEAD, TWICE)
    if groups:
        assert [*parts] == list(dict.fromkeys(groups))


def test_a_batch_of_one_group_is_not_copied() -> None:
    batch = make_batch(3)
    assert batch.split([7, 7, 7]) == {7: batch}


def test_a_batch_without_rows_is_one_part() -> None:
    batch = make_batch(0)
    [part] = batch.split([]).values()
    assert part is batch


@given(n=st.integers(0, 20), rows=st.integers(1, 8))
@settings(max_examples=100)
def test_chunks_lose_nothing_and_keep_the_order(n: int, rows: int) -> None:
    batch = make_batch(n)
    parts = batch.chunks(rows)
    assert [row for part in parts for row in rows_of(part)] == rows_of(batch)
    assert refused(parts) == (DEAD, TWICE)
    assert len(parts) == max(1, -(-n // rows))
    assert all(len(part) <= rows for part in parts)


@pytest.mark.parametrize("n", [0, 1, 5])
@pytest.mark.parametrize("columns", [0, 1, 2])
def test_with_stage_appends_features_and_places(n: int, columns: int) -> None:
    batch = make_batch(n)
    before = rows_of(batch)
    added = np.arange(n * columns, dtype=np.float64).reshape(n, columns) - 7
    late = np.arange(n) % 2 == 0
    grown = batch.with_stage(added, late, 40)
    assert grown.late.tolist() == [i % 2 == 0 or i % 3 == 0 for i in range(n)]
    assert grown.features.shape == (n, 3 + columns)
    assert np.array_equal(grown.features[:, :3], batch.features)
    assert np.array_equal(grown.features[:, 3:], added)
    assert grown.order.dtype == np.int64
    assert grown.order.tolist() == [[100 + i, 40 + i] for i in range(n)]
    assert refused([grown]) == (DEAD, TWICE)
    assert rows_of(batch) == before
    assert (grown.ids, grown.raw, grown.keys) == (batch.ids, batch.raw, batch.keys)


def test_empty() -> None:
    batch = FeatureBatch.empty(("terminal",), ("amount",))
    assert len(batch) == 0
    assert batch.is_empty
    assert rows_of(batch) == []
    assert (batch.entities, [*batch.values]) == ({"terminal": []}, ["amount"])
    batch.dead_letters.extend(DEAD)
    assert not batch.is_empty
    assert FeatureBatch.empty((), ()).is_empty, "two empty batches share their lists"
    assert refused(batch.chunks(5)) == (DEAD, [])


def test_is_empty_only_when_it_carries_nothing() -> None:
    assert make_batch(0, refused=False).is_empty
    assert not make_batch(1, refused=False).is_empty
    assert not make_batch(0).is_empty


def test_labels_are_selected_by_row() -> None:
    labels = LabelBatch(["a", "b", "c"], ["1", "2", "3"], np.arange(3), np.array([0.0, 1.0, 0.0]))
    part = labels.select([2, 0])
    assert (part.entities, part.ids) == (["c", "a"], ["3", "1"])
    assert (part.times.tolist(), part.values.tolist()) == ([2, 0], [0.0, 0.0])
    none = labels.select([])
    assert (none.entities, none.times.shape) == ([], (0,))
