"""A stand-in for Flink: map state, timers and counters of one subtask, in plain Python.

It stands for what Flink promises (map state and timers of the current key, restored after a
restart); the real engine is under test in tests/minicluster and tests/cluster.
"""

from __future__ import annotations

import pickle
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from pyflink.datastream import FlatMapFunction, KeyedProcessFunction

from udfs.batches.batch import FeatureBatch
from udfs.scoring.served import ServedScoring

Stored = dict[str, dict[int, dict[Any, bytes]]]
"""State name -> bucket -> key -> what Flink has stored. Timers are states too, without values."""

PROCESSING_TIME, EVENT_TIME = "processing-time timers", "event-time timers"
END_MS = ServedScoring.END_MS


class MapState:
    """Map state of the current key; only what Flink's types for it can hold goes in."""

    def __init__(self, context: Context, name: str) -> None:
        self._context = context
        self._name = name
        self._key_type = int if name == "in-flight" else str

    def _current(self) -> dict[Any, bytes]:
        return self._context.current(self._name)

    def get(self, key: str) -> bytes | None:
        return self._current().get(key)

    def put(self, key: str | int, value: bytes) -> None:
        assert type(key) is self._key_type
        assert type(value) is bytes
        self._current()[key] = value

    def put_all(self, values: dict[str, bytes]) -> None:
        for key, value in values.items():
            self.put(key, value)

    def is_empty(self) -> bool:
        return not self._current()

    def items(self) -> Iterable[tuple[Any, bytes]]:
        yield from self._current().items()

    def keys(self) -> Iterable[Any]:
        yield from [*self._current()]

    def remove(self, key: str | int) -> None:
        self._current().pop(key, None)


class Count:
    def __init__(self) -> None:
        self.value = 0

    def inc(self, n: int = 1) -> None:
        assert type(n) is int
        self.value += n

    def get_count(self) -> int:
        return self.value


class Metrics:
    def __init__(self) -> None:
        self.counters: dict[str, Count] = {}

    def counter(self, name: str) -> Count:
        return self.counters.setdefault(name, Count())

    def add_group(self, name: str, value: str) -> Metrics:
        return self


class Context:
    """The runtime context of one subtask, and what its function learns of the current key."""

    def __init__(self, stored: Stored | None = None) -> None:
        self.stored: Stored = {} if stored is None else stored
        self.metrics = Metrics()
        self.bucket: int | None = None
        self.watermark_ms = -(2**63)
        self.timers_set: Counter[str] = Counter()

    def current(self, name: str) -> dict[Any, bytes]:
        """A state of the current key."""
        assert self.bucket is not None, "state is read or written outside of an element"
        return self.stored.setdefault(name, {}).setdefault(self.bucket, {})

    def get_map_state(self, descriptor: Any) -> MapState:
        self.stored.setdefault(descriptor.name, {})
        return MapState(self, descriptor.name)

    def get_metrics_group(self) -> Metrics:
        return self.metrics

    def get_current_key(self) -> int:
        assert self.bucket is not None
        return self.bucket

    def timer_service(self) -> Context:
        return self

    def current_watermark(self) -> int:
        return self.watermark_ms

    def register_processing_time_timer(self, timestamp_ms: int) -> None:
        self._set_timer(PROCESSING_TIME, timestamp_ms)

    def register_event_time_timer(self, timestamp_ms: int) -> None:
        self._set_timer(EVENT_TIME, timestamp_ms)

    def _set_timer(self, domain: str, timestamp_ms: int) -> None:
        self.current(domain)[timestamp_ms] = b""
        self.timers_set[domain] += 1


class Subtask:
    """A function opened on a context, as one subtask of a running job."""

    def __init__(self, function: Any, stored: Stored | None = None) -> None:
        self.context = Context(stored)
        self.function = function
        function.open(self.context)

    @contextmanager
    def at(self, bucket: int) -> Iterator[Any]:
        """Flink's current key is that bucket; gives what stands for the context."""
        self.context.bucket = bucket
        try:
            yield self.context
        finally:
            self.context.bucket = None

    def run(self, element: Any) -> list[Any]:
        bucket, value = element
        with self.at(bucket) as context:
            if isinstance(self.function, KeyedProcessFunction):
                return [*self.function.process_element(value, context)]
            if isinstance(self.function, FlatMapFunction):
                return [*self.function.flat_map(element)]
            return [*self.function.take(bucket, value, context)]

    def run_all(self, elements: Iterable[Any]) -> list[Any]:
        return [out for element in elements for out in self.run(element)]

    def pending(self, domain: str) -> list[tuple[int, int]]:
        """Bucket and time of each timer that is set."""
        buckets = self.context.stored.get(domain, {})
        return [(bucket, time_ms) for bucket, times in buckets.items() for time_ms in times]

    def fire(self, domain: str = PROCESSING_TIME) -> list[Any]:
        """The timers that are set now go off."""
        outputs: list[Any] = []
        for bucket, time_ms in self.pending(domain):
            with self.at(bucket) as context:
                del context.current(domain)[time_ms]
                if isinstance(self.function, KeyedProcessFunction):
                    outputs += self.function.on_timer(time_ms, context)
                else:
                    outputs += self.function.on_timer(bucket, time_ms, context)
        return outputs

    def answers(self) -> list[Any]:
        """What comes by timers until none is set."""
        outputs = []
        while self.pending(PROCESSING_TIME):
            time.sleep(ServedScoring.POLL_MS / 1_000)
            outputs += self.fire()
        return outputs

    def end(self) -> list[Any]:
        """The input ends: its last watermark comes, processing time stands still."""
        self.context.watermark_ms = END_MS
        return self.fire(EVENT_TIME)

    def snapshot(self) -> Stored:
        """What a checkpoint would hold now, as if read back from a disk."""
        restored: Stored = pickle.loads(pickle.dumps(self.context.stored))
        return restored

    def in_flight(self, bucket: int) -> dict[int, FeatureBatch]:
        stored = self.context.stored["in-flight"].get(bucket, {})
        return {number: pickle.loads(packed) for number, packed in stored.items()}

    def close(self) -> None:
        self.function.close()
