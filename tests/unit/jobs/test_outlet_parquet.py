"""Parquet files that take each prediction once, however the topic is cut and cut again."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import orjson
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.outlets.parquet import ParquetTarget, Part
from jobs.outlets.settings import ParquetStoreSettings
from jobs.outlets.target import Fate, Message
from tests.support.predictions import predictions

FEATURES = ("amount", "card_count_5m")
COUNT = 40
DAY_MS = 86_400_000


def messages(partitions: int = 2, seed: int = 1) -> list[list[Message]]:
    """Those of each partition: several days, out of order."""
    made: list[list[Message]] = [[] for _ in range(partitions)]
    for n, document in enumerate(predictions(COUNT, FEATURES, seed=seed)):
        partition = n % partitions
        offset = len(made[partition]) * 2  # transactions leave gaps
        document["event_time_ms"] += (n * 7 % 3) * DAY_MS
        document["source"] |= {"partition": 7, "offset": COUNT - n}  # the event's: not the record's
        value = orjson.dumps(document)
        made[partition].append(Message(partition, offset, document["key"].encode(), value))
    return made


def target_in(folder: Path) -> ParquetTarget:
    target = ParquetTarget(ParquetStoreSettings(folder=folder), FEATURES)
    target.open()
    return target


def rows_in(folder: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for path in sorted(folder.glob("date=*/part-*.parquet")):
        part = Part.of(path)
        assert part is not None
        for row in pq.ParquetFile(path).read().to_pylist():
            assert part.first <= row["record_offset"] <= part.last
            assert row["record_partition"] == part.partition
            assert path.parent.name == f"date={row['event_time']:%Y-%m-%d}"
            rows.append(row)
    return sorted(rows, key=lambda r: (r["record_partition"], r["record_offset"]))


def expected(sent: list[list[Message]]) -> list[tuple[int, int, float, Any]]:
    found = []
    for message in (m for part in sent for m in part):
        document = orjson.loads(message.value)
        place = message.partition, message.offset
        found.append((*place, document["score"], document["features"]["amount"]))
    return sorted(found)


def stored(folder: Path) -> list[tuple[int, int, float, Any]]:
    names = ("record_partition", "record_offset", "score", "amount")
    return [tuple(row[name] for name in names) for row in rows_in(folder)]


cuts = st.lists(st.tuples(st.integers(0, COUNT // 2), st.integers(1, 12)), max_size=8)


@settings(max_examples=12)
@given(cuts=cuts, crash=st.booleans())
def test_replays_in_other_pieces_double_nothing(cuts: list[tuple[int, int]], crash: bool) -> None:
    sent = messages()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        target = target_in(folder)
        for partition in sent:
            for begin, length in cuts:  # pieces that a killed process has written
                if piece := partition[begin : begin + length]:
                    target.deliver(piece)
        if crash:
            for path in list(folder.glob("date=*/part-*"))[:2]:
                path.with_name(f".unfinished-{path.name}").write_bytes(b"half")
            target = target_in(folder)
        for begin in range(0, COUNT // 2, 9):
            both = [m for partition in sent for m in partition[begin : begin + 9]]
            assert {o.fate for o in target.deliver(both)} == {Fate.DONE}
        assert stored(folder) == expected(sent)
        assert not list(folder.glob("date=*/.*"))


def test_what_is_scored_anew_replaces_what_was(tmp_path: Path) -> None:
    target = target_in(tmp_path)
    for seed in (1, 2):
        sent = messages(seed=seed)
        target.deliver([m for partition in sent for m in partition])
    assert stored(tmp_path) == expected(messages(seed=2))


def test_what_is_no_prediction_is_refused(tmp_path: Path) -> None:
    (partition, _) = messages()
    sent = [partition[0], Message(0, 1, b"", b"{"), Message(0, 3, b"", b'{"key": 1}')]
    fates = [o.fate for o in target_in(tmp_path).deliver(sent)]
    assert fates == [Fate.DONE, Fate.REFUSED, Fate.REFUSED]
    assert len(rows_in(tmp_path)) == 1


def test_a_folder_that_cannot_be_written_is_tried_again(tmp_path: Path) -> None:
    target = target_in(tmp_path / "store")
    (partition, _) = messages()
    (tmp_path / "store").rmdir()
    (tmp_path / "store").write_text("no folder")
    (outcome,) = target.deliver(partition[:1])
    assert outcome.fate is Fate.RETRY
    (tmp_path / "store").unlink()
    target.open()
    assert target.deliver(partition[:1])[0].fate is Fate.DONE


@pytest.mark.parametrize("name", ["part-1.parquet", "x.parquet", "part-00001-0-1.parquet"])
def test_other_files_are_left_alone(tmp_path: Path, name: str) -> None:
    assert Part.of(tmp_path / name) is None
