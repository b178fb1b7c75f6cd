"""Which records of a micro-batch are shed, and what is written of them.

Shedding is worth its while if it costs far less than scoring: of a record only the fields that the
formula needs, the id, the key and the time are looked at.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import orjson
from xxhash import xxh3_64_intdigest

from udfs.batches.batch import FeatureBatch
from udfs.batches.events import KAFKA_TIME_MS, OFFSET, BoolArray, Decoder, Events, IntArray
from udfs.batches.privacy import Privacy
from udfs.batches.records import SCHEMA_VERSION
from udfs.batches.templates import TEXT, WHOLE, Template, as_template, between_quotes, members_of
from udfs.definition.overload import LagLimits, OverloadSpec
from udfs.definition.schema import Schema
from udfs.features.formulas import parse
from udfs.features.series import columns_of, kinds_of
from udfs.overload.controller import ALL, Controller

_SALT = b"overload"
_HASHES = 2**64


def wall_ms() -> int:
    """Epoch ms."""
    return time.time_ns() // 1_000_000


def monotonic_ms() -> int:
    """Of a clock that never goes back."""
    return time.monotonic_ns() // 1_000_000


def is_kept(event_id: str, share: float) -> bool:
    """Whether an event belongs to the share that is kept; what a share keeps, a larger one does."""
    return xxh3_64_intdigest(_SALT + event_id.encode()) < share * _HASHES


def waits_since(batch: FeatureBatch, limits: LagLimits) -> IntArray:
    """Since when each event of a batch has waited, epoch ms, int64 (n,)."""
    by_event_time = limits.clock == "event_time"
    return batch.times if by_event_time else batch.positions[:, KAFKA_TIME_MS]


def waited_ms(since: IntArray, now_ms: int) -> int:
    """How long events have waited, ms.

    The median: one producer's clock, or one record that was sent late, is no overload.
    """
    return max(0, now_ms - int(np.median(since)))


@dataclass(frozen=True, slots=True)
class Shed:
    """What is left of a batch.

    Attributes:
        kept: Indices of the records that go on, in order.
        records: Key and JSON of those that are shed.
        reason: Why.
    """

    kept: npt.NDArray[np.intp]
    records: list[tuple[str, bytes]]
    reason: str


class Shedding:
    """The shedding of one operator.

    Args:
        spec: What the user wants.
        schema: The job's; not of a roll-up, whose events are no records.
        topic: The events topic.
        now_ms: Epoch ms.
        clock_ms: Monotonic ms.
    """

    def __init__(
        self,
        spec: OverloadSpec,
        schema: Schema,
        topic: str,
        now_ms: Callable[[], int] = wall_ms,
        clock_ms: Callable[[], int] = monotonic_ms,
    ) -> None:
        event, kinds = schema.event, kinds_of(schema.event)
        self._formula = parse(spec.low_priority, kinds)
        needed = {event.id, schema.key, event.time.field, *self._formula.names}
        fields = [field for field in event.fields if field.name in needed]
        keys = (event.id, schema.key)
        self._decoder = Decoder(fields, event.time, keys, event.max_bytes)
        self._id, self._key = keys
        stages = schema.stages if spec.before == "scoring" else ()
        self._writer = ShedWriter(topic, spec.before, stages, Privacy.of_events(schema))
        self._spec, self._now_ms, self._clock_ms = spec, now_ms, clock_ms
        self.controller = Controller(spec)
        self.lag_ms = 0

    def of_records(
        self, raw: Sequence[bytes], positions: IntArray, queue: float = 0.0, later_ms: int = 0
    ) -> Shed | None:
        """What is shed of raw records; none if nothing is.

        A record that cannot be read goes on, to become a dead letter. One that is shed has been
        checked only as far as the formula needs.

        Args:
            raw: The records.
            positions: Partition, offset, Kafka time in ms; int64 (n, 3).
            queue: How full the calls to the model server are, 0 to 1.
            later_ms: Lag of what is about to be scored, if it is known.
        """
        if not raw:
            return None
        events: Events | None = None
        since = positions[:, KAFKA_TIME_MS]
        if self._spec.lag.clock == "event_time":
            events = self._read(raw, positions)
            since = events.times if events is not None else since
        if self._observe(since, queue, later_ms) >= ALL:
            return None
        events = events or self._read(raw, positions)
        return None if events is None else self._shed(events, positions, None)

    def of_batch(self, batch: FeatureBatch, queue: float) -> tuple[FeatureBatch, Shed | None]:
        """What goes on to be scored of a batch, and what is shed of it.

        Args:
            batch: Its features are computed, and its refused records go on.
            queue: How full the calls to the model server are, 0 to 1.
        """
        if not len(batch):
            return batch, None
        if self._observe(waits_since(batch, self._spec.lag), queue) >= ALL:
            return batch, None
        events = self._read(batch.raw, batch.positions)
        shed = None if events is None else self._shed(events, batch.positions, batch.order)
        return (batch.with_records(batch.select(shed.kept)), shed) if shed else (batch, None)

    def _observe(self, since: IntArray, queue: float, later_ms: int = 0) -> float:
        self.lag_ms = max(later_ms, waited_ms(since, self._now_ms()))
        return self.controller.observe(self._clock_ms(), self.lag_ms, queue, len(since))

    def _read(self, raw: Sequence[bytes], positions: IntArray) -> Events | None:
        """The records that can be read; in place of its offset each has its row."""
        numbered = positions.copy()
        numbered[:, OFFSET] = np.arange(len(raw))
        return self._decoder.decode([*raw], numbered).merged()

    def _may_go(self, events: Events) -> BoolArray:
        """Which events are of low priority and not of the share that is kept, bool (n,)."""
        go = self._formula.truths(columns_of(events), len(events))
        share, ids = self.controller.share, events.texts[self._id]
        for row in np.flatnonzero(go).tolist():
            go[row] = not is_kept(ids[row], share)
        return go

    def _shed(self, events: Events, positions: IntArray, order: IntArray | None) -> Shed | None:
        gone = events.select(np.flatnonzero(self._may_go(events)))
        if not len(gone):
            return None
        self.controller.load.shed(len(gone))
        rows = gone.positions[:, OFFSET]
        kept = np.ones(len(positions), np.bool_)
        kept[rows] = False
        gone = replace(gone, positions=positions[rows])
        ids, keys = gone.texts[self._id], gone.texts[self._key]
        order = np.empty((len(gone), 0), np.int64) if order is None else order[rows]
        made = self._writer.records(ids, keys, gone, order, self.controller, self._now_ms())
        return Shed(np.flatnonzero(kept), made, self.controller.reason)


class ShedWriter:
    """Records of the ``shed`` topic.

    Args:
        topic: The events topic.
        before: ``features`` or ``scoring``.
        stages: Those that know of the events, by their keys.
        privacy: What is hidden of the events; none if nothing is.
    """

    def __init__(
        self, topic: str, before: str, stages: Sequence[str], privacy: Privacy | None
    ) -> None:
        self._topic, self._before, self._stages, self._privacy = topic, before, stages, privacy
        self._templates: dict[tuple[str, float], Template] = {}

    def records(
        self,
        ids: list[str],
        keys: list[str],
        events: Events,
        order: IntArray,
        controller: Controller,
        shed_time_ms: int,
    ) -> list[tuple[str, bytes]]:
        """Key and JSON of each event; ``order`` is its place in each stage's order of arrival."""
        if self._privacy is not None:
            ids, keys = self._privacy.ids(ids), self._privacy.keys(keys)
        n = len(ids)
        times = np.stack([events.times, events.positions[:, KAFKA_TIME_MS]], axis=1)
        shed_at = np.full((n, 1), shed_time_ms, np.int64)
        places = events.positions[:, :KAFKA_TIME_MS]
        whole = np.concatenate([times, shed_at, order, places], axis=1)
        texts = [""] * (2 * n)
        texts[::2], texts[1::2] = between_quotes(ids), between_quotes(keys)
        template = self._template(controller.reason, controller.share)
        made = template.fill(np.empty((n, 0)), whole, texts)
        return list(zip(keys, made, strict=True))

    def _template(self, reason: str, share: float) -> Template:
        if (reason, share) not in self._templates:
            self._templates[reason, share] = self._new_template(reason, share)
        return self._templates[reason, share]

    def _new_template(self, reason: str, share: float) -> Template:
        topic = orjson.dumps(self._topic).decode()
        order = (',"order":{', *members_of(self._stages, WHOLE), "}") if self._stages else ()
        return as_template(
            [
                f'{{"schema_version":{SCHEMA_VERSION},"event_id":"',
                *(TEXT, '","key":"', TEXT),
                f'","reason":"{reason}","before":"{self._before}","kept":{share:g},',
                *('"event_time_ms":', WHOLE, ',"ingest_time_ms":', WHOLE, ',"shed_time_ms":'),
                *(WHOLE, *order, f',"source":{{"topic":{topic},"partition":', WHOLE),
                *(',"offset":', WHOLE, "}}"),
            ]
        )
