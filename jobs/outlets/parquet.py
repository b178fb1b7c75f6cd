"""Predictions into Parquet files that a replay writes anew and never doubles.

``date=2026-03-01/part-00002-00000000000000018834-00000000000000021000.parquet`` has the predictions
of that day of event time which lie in partition 2 of the topic at these offsets. A file appears
whole or not at all. What is written takes its offsets' place in whatever files had them before: a
restart may cut the topic into other pieces.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from jobs.outlets.columns import PLACE
from jobs.outlets.rows import Rows
from jobs.outlets.settings import ParquetStoreSettings
from jobs.outlets.target import Message, Outcome, retry_all

_UNFINISHED = ".unfinished-"
_NAME = re.compile(r"part-(\d{5,})-(\d{20})-(\d{20})\.parquet")


class Part(NamedTuple):
    """A file of a partition's offsets, both ends included."""

    folder: Path
    partition: int
    first: int
    last: int

    @property
    def path(self) -> Path:
        """Where it is."""
        name = f"part-{self.partition:05}-{self.first:020}-{self.last:020}.parquet"
        return self.folder / name

    @classmethod
    def of(cls, path: Path) -> Part | None:
        """The part that a path names."""
        found = _NAME.fullmatch(path.name)
        return cls(path.parent, *map(int, found.groups())) if found else None


class ParquetTarget:
    """Writes files per day and partition.

    Args:
        settings: The folder.
        features: The names of the features.
    """

    name = "parquet"

    def __init__(self, settings: ParquetStoreSettings, features: Sequence[str]) -> None:
        self._folder = settings.folder
        self._rows = Rows(features)

    def open(self) -> None:
        """Make the folder."""
        self._folder.mkdir(parents=True, exist_ok=True)

    def close(self) -> None:
        """Nothing is open between batches."""

    def deliver(self, messages: Sequence[Message]) -> list[Outcome]:
        """See ``Target``."""
        table, at, outcomes = self._rows.read(messages)
        places = [(messages[n].partition, messages[n].offset) for n in at]
        for n, name in enumerate(PLACE):
            column = pa.array([place[n] for place in places], pa.int64())
            table = table.append_column(name, column)
        offsets: dict[int, list[int]] = {}
        for message in messages:
            offsets.setdefault(message.partition, []).append(message.offset)
        try:
            there = self._tidied(offsets)
            for partition, mine in offsets.items():
                rows = table.filter(pc.equal(table[PLACE[0]], partition))
                self._write(rows, partition, min(mine), max(mine), there)
        except OSError as exc:
            return retry_all(messages, f"{type(exc).__name__}: {exc}")
        return outcomes

    def _tidied(self, partitions: Iterable[int]) -> list[Part]:
        """The parts of some partitions; what a crash has left unfinished of them is removed.

        Looked up for each batch: another process may have had a partition meanwhile.
        """
        mine, parts = set(partitions), []
        for path in self._folder.glob("date=*/*"):
            part = Part.of(path.with_name(path.name.removeprefix(_UNFINISHED)))
            if part is None or part.partition not in mine:
                continue
            if path.name.startswith(_UNFINISHED):
                path.unlink()
            else:
                parts.append(part)
        return parts

    def _write(
        self, rows: pa.Table, partition: int, first: int, last: int, there: Sequence[Part]
    ) -> None:
        """Write a partition's rows, by day; before they appear, others lose these offsets."""
        made = []
        days = pc.strftime(rows["event_time"], format="%Y-%m-%d")
        for day in pc.unique(days).to_pylist():
            folder = self._folder / f"date={day}"
            folder.mkdir(exist_ok=True)
            part = Part(folder, partition, first, last)
            made.append(part)
            _unfinished(part, rows.filter(pc.equal(days, day)))
        for part in there:
            overlaps = part.partition == partition and part.first <= last and first <= part.last
            if overlaps and part not in made:
                _cut_out(part, first, last)
        for part in made:
            _finish(part)


def _cut_out(part: Part, first: int, last: int) -> None:
    """Take these offsets out of a file; what is left of it gets names of its own."""
    rows = pq.ParquetFile(part.path).read()
    offsets = rows[PLACE[1]]
    before = part._replace(last=first - 1), pc.less(offsets, first)
    after = part._replace(first=last + 1), pc.greater(offsets, last)
    for rest, kept in (before, after):
        if rest.first <= rest.last and pc.any(kept).as_py():
            _unfinished(rest, rows.filter(kept))
            _finish(rest)
    part.path.unlink()


def _unfinished(part: Part, rows: pa.Table) -> None:
    """Write a file under a name that readers skip, and see it on the disk."""
    with _hidden(part).open("wb") as file:
        pq.write_table(rows, file, compression="zstd")
        file.flush()
        os.fsync(file.fileno())


def _finish(part: Part) -> None:
    """Give a written file its name, at once."""
    os.replace(_hidden(part), part.path)
    folder = os.open(part.folder, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _hidden(part: Part) -> Path:
    return part.path.with_name(_UNFINISHED + part.path.name)
