"""Reference tables as every TaskManager holds them: loaded before the first event, then followed.

A table is what Kafka Streams calls a GlobalKTable: each TaskManager process reads the whole topic
in a thread of its own, and an operator's ``open()`` waits until the table is loaded. Not Flink's
broadcast state: there the table's records and the events reach an operator side by side, and
nothing can hold the events back until the table is complete, so that the first ones would be scored
with part of it. It would also be checkpointed once per subtask, although the topic has it all.

The subtasks of a process share a table. In a TaskManager it is followed for a minute more when the
last of them has ended: a restart finds it there. Elsewhere each reads it to its present end.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field, replace
from threading import Event, Lock, Thread, Timer

from udfs.batches.events import Events
from udfs.definition.enrichment import TableSpec
from udfs.enrichment.table_sources import POLL_S, FileSource, KafkaAccess, Source, TopicSource
from udfs.enrichment.tables import VersionedTable
from udfs.lifetime import is_embedded

__all__ = ["KafkaAccess", "OpenTables", "TableCounts", "TableError", "Tables"]

logger = logging.getLogger(__name__)

LOG_EVERY_S = 5.0
STOP_S = 5.0
LINGER_S = 60.0
_LOGGED_REFUSALS = 10


class TableError(RuntimeError):
    """A table could not be loaded; the text says why and what to do."""


@dataclass
class TableCounts:
    """What was read of a table, in all."""

    records: int = 0
    refused: int = 0


@dataclass
class _Reading:
    """A table and the thread that fills it."""

    table: VersionedTable
    users: int = 0
    releases: int = 0
    counts: TableCounts = field(default_factory=TableCounts)
    told: TableCounts = field(default_factory=TableCounts)

    def __post_init__(self) -> None:
        self._stop, self._loaded = Event(), Event()
        self._refusals = 0

    def start(self, kafka: KafkaAccess) -> None:
        spec = self.table.spec
        if spec.topic is not None:
            self._source: Source = TopicSource(spec.topic, kafka, self)
        else:
            assert spec.file is not None
            self._source = FileSource(spec.file, self)
        self._thread = Thread(target=self._run, name=f"streamscore-table-{spec.name}", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(STOP_S)

    def wait_loaded(self) -> None:
        """Block until all that was there is read.

        Raises:
            TableError: It took longer than ``load_timeout``.
        """
        spec = self.table.spec
        begun_s = time.monotonic()
        left_s = spec.load_timeout / 1_000
        while not self._loaded.wait(min(LOG_EVERY_S, left_s)):
            waited_s = time.monotonic() - begun_s
            left_s = spec.load_timeout / 1_000 - waited_s
            if left_s <= 0:
                raise TableError(
                    f"table {spec.name!r} was not loaded within {waited_s:.0f} s: "
                    f"{self._why()}; no event is scored without it"
                )
            logger.warning("table %r: waiting since %.0f s: %s", spec.name, waited_s, self._why())

    def took(self, records: int) -> None:
        """Count records that were read."""
        self.counts.records += records

    def refuse(self, where: str, why: str) -> None:
        """Count a record that cannot be used; the first ones are logged."""
        self.counts.refused += 1
        self._refusals += 1
        if self._refusals <= _LOGGED_REFUSALS:
            name = self.table.spec.name
            logger.warning("table %r: %s refused, the old row stays: %s", name, where, why)

    def _why(self) -> str:
        rows, wanted = len(self.table), self.table.spec.min_rows
        return self._source.state() or f"{rows:,} rows so far, min_rows is {wanted:,}"

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self._source.read(self._stop, self._complete)
            except Exception as exc:  # whatever it is, the table must be followed again
                logger.warning("table %r is read again: %s", self.table.spec.name, exc)
                self._stop.wait(POLL_S)

    def _complete(self) -> None:
        if not self._loaded.is_set() and len(self.table) >= self.table.spec.min_rows:
            logger.info("table %r: loaded, %d rows", self.table.spec.name, len(self.table))
            self._loaded.set()


_readings: dict[tuple[TableSpec, KafkaAccess], _Reading] = {}
_lock = Lock()


class OpenTables:
    """Loaded tables, until they are closed.

    Args:
        used: What identifies each of them.
    """

    def __init__(self, used: list[tuple[TableSpec, KafkaAccess]]) -> None:
        self._used = used
        self._readings = [_readings[key] for key in used]

    def join(self, events: Events) -> Events:
        """The events with the fields of every table."""
        for reading in self._readings:
            events = reading.table.join(events)
        return events

    def take_counts(self) -> TableCounts:
        """What was read since a subtask of this process asked last."""
        new = TableCounts()
        with _lock:
            for reading in self._readings:
                now = replace(reading.counts)
                new.records += now.records - reading.told.records
                new.refused += now.refused - reading.told.refused
                reading.told = now
        return new

    def close(self) -> None:
        """Let go of the tables; what nobody uses any more is read no longer, see the module."""
        for key in self._used:
            _release(key)
        self._used = []


@dataclass(frozen=True)
class Tables:
    """The tables of a job, to be opened in the process that joins them.

    Attributes:
        specs: What the user declared.
        kafka: How their topics are read.
    """

    specs: tuple[TableSpec, ...] = ()
    kafka: KafkaAccess = field(default_factory=KafkaAccess)

    def open(self) -> OpenTables:
        """Start to read, and wait until every table is loaded.

        Raises:
            TableError: One was not within its ``load_timeout``.
        """
        used = [(spec, self.kafka) for spec in self.specs]
        for key in used:
            _use(key)
        tables = OpenTables(used)
        try:
            for key in used:
                _readings[key].wait_loaded()
        except BaseException:
            tables.close()
            raise
        return tables


def _use(key: tuple[TableSpec, KafkaAccess]) -> None:
    with _lock:
        reading = _readings.get(key)
        if reading is None:
            reading = _readings[key] = _Reading(VersionedTable(key[0]))
            reading.start(key[1])
        reading.users += 1


def _release(key: tuple[TableSpec, KafkaAccess]) -> None:
    with _lock:
        reading = _readings[key]
        reading.users -= 1
        reading.releases += 1
        release = reading.releases
    if is_embedded():
        dropping = Timer(LINGER_S, _drop, [key, reading, release])
        dropping.daemon = True
        dropping.start()
    else:
        _drop(key, reading, release)


def _drop(key: tuple[TableSpec, KafkaAccess], reading: _Reading, release: int) -> None:
    """Read it no longer, unless it is used or was let go of again since that release."""
    with _lock:
        if reading.users or reading.releases != release:
            return
        del _readings[key]
    reading.stop()
