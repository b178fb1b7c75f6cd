"""From raw Kafka records to checked columns, a whole micro-batch at a time.

A batch is checked as a batch: one pass over each column. Only when that finds something wrong is
the batch halved, again and again, until the bad record stands alone and becomes a ``Reject``; its
neighbours go on. The cost of ``k`` bad records among ``n`` is O(k log n) passes; of those that are
no JSON, one more pass for all of them.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from operator import itemgetter
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from udfs.batches import frames as framing
from udfs.definition.event import EventSpec, FieldSpec, LabelSpec, TimeSpec

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

PARTITION, OFFSET, KAFKA_TIME_MS = range(3)
"""Columns of a positions array."""

MAX_KEY_BYTES = 1_024

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_TYPES: dict[str, frozenset[type]] = {
    "string": frozenset((str,)),
    "float": frozenset((float, int)),
    "int": frozenset((int,)),
    "bool": frozenset((bool,)),
}


class EventError(ValueError):
    """A record that cannot be scored; ``code`` is stable, the text says what is wrong."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class BatchFormatError(ValueError):
    """A micro-batch that is not joined as the job's own SQL joins it: no record can be at fault."""


@dataclass(frozen=True, slots=True)
class Reject:
    """A refused record: its raw bytes, why, and its place in Kafka."""

    raw: bytes
    code: str
    message: str
    partition: int
    offset: int
    kafka_time_ms: int


class ClockSetBackError(RuntimeError):
    """The clock went back while a window was open.

    Flink puts the records of a window into its state when a timer later than all before fires.
    Until the clock is there again it fires windows that look empty and forgets what was in them.
    The first such window must end the task, before a checkpoint says that its records are done.
    """


class CodedTexts(list[str]):
    """A column of texts that knows which of them are equal.

    Attributes:
        codes: A number for each, the same for equal texts, from 0; int64 (n,).
        most: How many numbers there are; each is below it.

    Args:
        codes: Indices into ``values``, int64 (n,).
        values: Different texts; some may be in no row.
    """

    def __init__(self, codes: IntArray, values: npt.NDArray[np.object_]) -> None:
        super().__init__(values[codes].tolist())
        self.codes, self.most = codes, len(values)


@dataclass(frozen=True, slots=True)
class Events:
    """``n`` checked events as columns.

    Attributes:
        raw: The records' bytes.
        positions: Partition, offset and Kafka time in ms; int64 of shape (n, 3).
        times: Event times in epoch ms; int64 of shape (n,).
        texts: The string columns by field name; an absent optional value is None.
        numbers: The numeric columns by field name, float64 (n,); absent is NaN.
    """

    raw: list[bytes]
    positions: IntArray
    times: IntArray
    texts: dict[str, list[str]]
    numbers: dict[str, FloatArray]

    def __len__(self) -> int:
        return len(self.raw)

    def select(self, rows: npt.NDArray[np.intp]) -> Events:
        """These events alone, in this order."""
        at = rows.tolist()
        return Events(
            [self.raw[i] for i in at],
            self.positions[rows],
            self.times[rows],
            {name: [column[i] for i in at] for name, column in self.texts.items()},
            {name: column[rows] for name, column in self.numbers.items()},
        )

    def part(self, start: int, stop: int) -> Events:
        """The events from ``start`` to before ``stop``."""
        rows = slice(start, stop)
        return Events(
            self.raw[rows],
            self.positions[rows],
            self.times[rows],
            {name: column[rows] for name, column in self.texts.items()},
            {name: column[rows] for name, column in self.numbers.items()},
        )


@dataclass(slots=True)
class Decoded:
    """What a batch became: checked parts in order, and the records refused."""

    parts: list[Events] = field(default_factory=list)
    rejects: list[Reject] = field(default_factory=list)

    def refuse(self, raw: bytes, position: IntArray, why: EventError) -> None:
        """Add a reject; ``position`` is the record's partition, offset and Kafka time, (3,)."""
        self.rejects.append(Reject(raw, why.code, str(why), *position.tolist()))

    def merged(self) -> Events | None:
        """All checked events as one batch, or none."""
        if len(self.parts) <= 1:
            return self.parts[0] if self.parts else None
        first = self.parts[0]
        return Events(
            raw=[r for p in self.parts for r in p.raw],
            positions=np.concatenate([p.positions for p in self.parts]),
            times=np.concatenate([p.times for p in self.parts]),
            texts={k: [v for p in self.parts for v in p.texts[k]] for k in first.texts},
            numbers={k: np.concatenate([p.numbers[k] for p in self.parts]) for k in first.numbers},
        )


def split_batch(joined: str | None) -> tuple[list[bytes], IntArray]:
    """Undo the JVM's join: the records' bytes and their positions.

    Args:
        joined: For each record its partition, offset, Kafka time in ms, length in bytes and itself,
            as Latin-1 text (so that any byte survives), all joined by single spaces.

    Returns:
        The raw records and their positions, int64 of shape (n, 3).

    Raises:
        BatchFormatError: it is no such text.
        ClockSetBackError: it is none.
    """
    if joined is None:
        raise ClockSetBackError(
            "a window of records came without them: the clock of this TaskManager was set back; "
            "the job goes on from its last checkpoint. Let the clock be slewed, not stepped"
        )
    data = _as_bytes(joined)
    frames, broken_at = framing.frames(np.frombuffer(data, np.uint8))
    if broken_at >= 0:
        raise BatchFormatError(
            f"malformed batch: no whole record at byte {broken_at:,} of {len(data):,}"
        )
    bounds = zip(frames[:, 3].tolist(), frames[:, 4].tolist(), strict=True)
    return [data[start:end] for start, end in bounds], np.ascontiguousarray(frames[:, :3])


def _as_bytes(joined: str) -> bytes:
    try:
        return joined.encode("latin-1")
    except UnicodeEncodeError as exc:
        raise BatchFormatError(f"malformed batch: no byte at character {exc.start:,}") from exc


class Decoder:
    """Checks records against a schema.

    Args:
        fields: The fields to read.
        time: Where the event time is and which times are believed.
        keys: String fields that become Kafka keys or ids: neither empty, too long nor with
            control characters.
        max_bytes: A longer record is refused.
    """

    def __init__(
        self, fields: Sequence[FieldSpec], time: TimeSpec, keys: Iterable[str], max_bytes: int
    ) -> None:
        required = [f for f in fields if f.required]
        optional = [f for f in fields if not f.required]
        self._required = tuple(f.name for f in required)
        self._optional = tuple(f.name for f in optional)
        self._fields = (*required, *optional)
        self._get_required = _getter(self._required)
        self._get_all = _getter(self._required + self._optional)
        self._time = time
        self._keys = tuple(dict.fromkeys(keys))
        self._max_bytes = max_bytes

    @classmethod
    def for_events(cls, spec: EventSpec, keys: Iterable[str]) -> Decoder:
        """The decoder of a job's events; ``keys`` are the stages' key fields."""
        return cls(spec.fields, spec.time, (spec.id, *keys), spec.max_bytes)

    @classmethod
    def for_labels(cls, labels: LabelSpec, event: EventSpec) -> Decoder:
        """The decoder of a job's late labels."""
        fields = (
            FieldSpec(name=labels.id, type="string"),
            FieldSpec(name=labels.time, type="int"),
            FieldSpec(name=labels.key, type="string"),
            FieldSpec(name=labels.value, type="int", min=0, max=1),
        )
        time = event.time.model_copy(update={"field": labels.time, "format": "epoch_ms"})
        return cls(fields, time, (labels.id, labels.key), event.max_bytes)

    def decode(self, raw: list[bytes], positions: IntArray) -> Decoded:
        """Check a batch; every record ends either in a part or in a reject, in order."""
        result, begin = Decoded(), 0
        docs, faults = self._parse(raw)
        for at in (*faults, len(raw)):
            if begin < at:
                rows = slice(begin, at)
                self._decode(raw[rows], docs[rows], positions[rows], result)
            if at in faults:
                result.refuse(raw[at], positions[at], faults[at])
            begin = at + 1
        return result

    def _decode(
        self, raw: list[bytes], docs: list[Any], positions: IntArray, result: Decoded
    ) -> None:
        try:
            result.parts.append(self._columns(raw, docs, positions))
        except EventError as exc:
            if len(raw) == 1:
                result.refuse(raw[0], positions[0], exc)
                return
            half = len(raw) // 2
            for rows in (slice(half), slice(half, None)):
                self._decode(raw[rows], docs[rows], positions[rows], result)

    def _columns(self, raw: list[bytes], docs: list[Any], positions: IntArray) -> Events:
        columns = self._extract(docs)
        texts: dict[str, list[str]] = {}
        numbers: dict[str, FloatArray] = {}
        for spec, column in columns:
            _check_types(spec, column)
            if spec.is_numeric:
                numbers[spec.name] = _check_numbers(spec, column)
            else:
                texts[spec.name] = column
        for key in self._keys:
            _check_key(key, texts[key])
        named = {spec.name: column for spec, column in columns}
        times = _check_times(self._time, named[self._time.field], positions)
        return Events(raw, positions, times, texts, numbers)

    def _parse(self, raw: list[bytes]) -> tuple[list[Any], dict[int, EventError]]:
        """Each record's document; and by its index, why a record has none."""
        if not raw or max(map(len, raw)) <= self._max_bytes:
            with contextlib.suppress(orjson.JSONDecodeError):
                return [*map(orjson.loads, raw)], {}
        docs = [*map(self._parse_one, raw)]
        return docs, {n: doc for n, doc in enumerate(docs) if isinstance(doc, EventError)}

    def _parse_one(self, raw: bytes) -> Any:
        if len(raw) > self._max_bytes:
            told = f"record of {len(raw)} bytes; at most {self._max_bytes}"
            return EventError("too_large", told)
        try:
            return orjson.loads(raw)
        except orjson.JSONDecodeError as exc:
            return _why_not_json(raw, exc)

    def _extract(self, docs: list[Any]) -> list[tuple[FieldSpec, list[Any]]]:
        try:
            try:
                rows = [*map(self._get_all, docs)]
            except KeyError:  # an optional field is absent somewhere, or a required one
                rows = [*map(self._get_present, docs)]
        except (KeyError, TypeError, IndexError, AttributeError) as exc:
            raise self._why_not_fields(docs[0]) from exc
        columns = [list(column) for column in zip(*rows, strict=True)]
        for spec, column in zip(self._fields, columns, strict=True):
            if spec.default is not None and not spec.required:
                column[:] = [spec.default if v is None else v for v in column]
        return list(zip(self._fields, columns, strict=True))

    def _get_present(self, doc: Any) -> tuple[Any, ...]:
        optional = [doc.get(name) for name in self._optional]
        return (*self._get_required(doc), *optional)

    def _why_not_fields(self, doc: Any) -> EventError:
        if not isinstance(doc, dict):
            return EventError("not_an_object", f"the record is a JSON {type(doc).__name__}")
        missing = [name for name in self._required if name not in doc]
        return EventError("missing_field", f"required field absent: {', '.join(missing)}")


def _getter(names: Sequence[str]) -> Callable[[Any], tuple[Any, ...]]:
    """Takes a document's values of these names, as a tuple even of one."""
    if len(names) == 1:
        return lambda doc: (doc[names[0]],)
    return itemgetter(*names) if names else lambda doc: ()


def _why_not_json(raw: bytes, exc: orjson.JSONDecodeError) -> EventError:
    if not raw.strip():
        return EventError("empty", "the record has no content")
    try:
        raw.decode()
    except UnicodeDecodeError as bad:
        return EventError("not_utf8", f"not UTF-8 at byte {bad.start}")
    return EventError("not_json", f"not JSON: {exc}")


def _check_types(spec: FieldSpec, column: list[Any]) -> None:
    wrong = set(map(type, column)) - _TYPES[spec.type]
    if not spec.required:
        wrong.discard(type(None))
    if not wrong:
        return
    if type(None) in wrong:
        raise EventError("missing_field", f"required field is null: {spec.name}")
    names = ", ".join(sorted(t.__name__ for t in wrong))
    raise EventError("wrong_type", f"field {spec.name} must be {spec.type}, is {names}")


def _check_numbers(spec: FieldSpec, column: list[Any]) -> FloatArray:
    try:
        values = np.array(column, dtype=np.float64)
    except OverflowError as exc:
        raise EventError("out_of_range", f"field {spec.name} is too large") from exc
    for wrong, what in _number_faults(spec, values):
        if wrong.any():
            raise EventError("out_of_range", f"field {spec.name} {what}")
    return values


def _number_faults(spec: FieldSpec, values: FloatArray) -> Iterator[tuple[BoolArray, str]]:
    yield np.isinf(values), "is not finite"
    if spec.min is not None:
        yield values < spec.min, f"is below its minimum {spec.min:g}"
    if spec.max is not None:
        yield values > spec.max, f"is above its maximum {spec.max:g}"


def numbers_fit(spec: FieldSpec, values: FloatArray) -> BoolArray:
    """Which numbers the decoder would take, bool (n,); NaN is missing and fits."""
    return _none_of(_number_faults(spec, values))


def _none_of(faults: Iterator[tuple[BoolArray, str]]) -> BoolArray:
    fit: BoolArray = ~np.logical_or.reduce([wrong for wrong, _ in faults])
    return fit


def _check_key(name: str, column: Sequence[str]) -> None:
    if not all(column):
        raise EventError("bad_key", f"field {name} is empty")
    if _CONTROL.search("".join(column)):
        raise EventError("bad_key", f"field {name} contains a control character")
    if max(map(len, column)) > MAX_KEY_BYTES // 4 and (  # a character has at most 4 bytes
        max(len(text.encode()) for text in column) > MAX_KEY_BYTES
    ):
        raise EventError("bad_key", f"field {name} is longer than {MAX_KEY_BYTES} bytes")


def keys_fit(name: str, texts: Sequence[str]) -> BoolArray:
    """Which texts the decoder would take as a key or an id, bool (n,)."""
    if not texts:
        return np.empty(0, np.bool_)
    try:
        _check_key(name, texts)
    except EventError:
        if len(texts) == 1:
            return np.zeros(1, np.bool_)
        half = len(texts) // 2
        return np.concatenate([keys_fit(name, texts[:half]), keys_fit(name, texts[half:])])
    return np.ones(len(texts), np.bool_)


def epoch_ms_of_iso(text: str) -> int:
    """Epoch milliseconds of an ISO 8601 time; without an offset it is UTC.

    Raises:
        ValueError: it is no such time.
        OverflowError: it is beyond what a clock can say.
    """
    moment = datetime.fromisoformat(text)
    aware = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return round(aware.timestamp() * 1_000)


def _check_times(spec: TimeSpec, column: list[Any], positions: IntArray) -> IntArray:
    try:
        if spec.format == "iso8601":
            column = [epoch_ms_of_iso(text) for text in column]
        written = np.array(column, dtype=np.int64)
    except (ValueError, OverflowError) as exc:
        raise EventError("bad_time", f"field {spec.field} is not a time: {exc}") from exc
    times = _in_ms(spec, written)
    for wrong, what in _time_faults(spec, written, times, positions[:, KAFKA_TIME_MS]):
        if wrong.any():
            raise EventError("bad_time", f"field {spec.field} {what}")
    return times


def _in_ms(spec: TimeSpec, written: IntArray) -> IntArray:
    return written * 1_000 if spec.format == "epoch_s" else written


def _time_faults(
    spec: TimeSpec, written: IntArray, times: IntArray, kafka_ms: IntArray
) -> Iterator[tuple[BoolArray, str]]:
    if spec.format == "epoch_s":  # not abs(), which wraps for the smallest int64
        yield (written > 10**14) | (written < -(10**14)), "is too large for seconds"
    yield times < spec.earliest_ms, f"is before {spec.earliest:%Y-%m-%d}"
    yield times > kafka_ms + spec.max_future, "is too far in the future"


def times_fit(spec: TimeSpec, written: IntArray, kafka_ms: IntArray) -> tuple[IntArray, BoolArray]:
    """Event times, and which of them the decoder would take.

    Args:
        spec: How times are written and which are believed.
        written: Whole numbers as they are written, those of ISO 8601 in epoch ms; int64 (n,).
        kafka_ms: When Kafka got the records, int64 (n,).

    Returns:
        Epoch ms, int64 (n,), undefined where they do not fit; and bool (n,).
    """
    times = _in_ms(spec, written)
    return times, _none_of(_time_faults(spec, written, times, kafka_ms))
