"""The features of ``bench/features.py`` in Quix Streams.

``--kind state`` computes all of them. Quix's windows give one record per window and key, which
cannot be joined to one record per event; so a key's history is its state, as bytes, and is
recounted for each event. The second key is ``group_by``, which goes through a Kafka topic.

``--kind window`` is Quix's own ``sliding_window(...).agg(...)`` for the features of one window of
one key; its aggregations are count, sum, mean, min and max.

Changelog topics are off in one process: no state is stored beside RocksDB's files, in its favour.
Several processes need them, as a partition that moves from one to another would lose its state.
"""

from __future__ import annotations

import argparse
from array import array
from collections.abc import Callable
from typing import Any

import orjson
import quixstreams.dataframe.windows.aggregations as agg
from quixstreams import Application, State
from quixstreams.models import (
    Deserializer,
    SerializationContext,
    Serializer,
)

from bench.peer_windows import Group, read_groups, recounted

_AGGREGATIONS = {
    "count": lambda: agg.Count(),
    "sum": lambda: agg.Sum("amount"),
    "mean": lambda: agg.Mean("amount"),
    "min": lambda: agg.Min("amount"),
    "max": lambda: agg.Max("amount"),
}

Event = dict[str, Any]


class OrjsonDeserializer(Deserializer):
    """JSON by orjson: quicker than the default."""

    def __call__(self, value: bytes, ctx: SerializationContext) -> Any:
        return orjson.loads(value)


class OrjsonSerializer(Serializer):
    """JSON by orjson."""

    def __call__(self, value: Any, ctx: SerializationContext) -> bytes:
        return orjson.dumps(value)


def windows_of(groups: list[Group], name: str) -> Callable[[Event, State], Event]:
    """A stateful function that adds a key's windows to an event."""
    horizon_ms = max(length_ms for length_ms, _, _ in groups)

    def add(event: Event, state: State) -> Event:
        times, values = array("d"), array("d")
        packed = state.get_bytes(name)
        if packed:
            half = len(packed) // 2
            times.frombytes(packed[:half])
            values.frombytes(packed[half:])
        times.append(event["event_time_ms"])
        values.append(event["amount"])
        old = 0
        while times[old] <= times[-1] - horizon_ms:
            old += 1
        times, values = times[old:], values[old:]
        state.set_bytes(name, times.tobytes() + values.tobytes())
        event.update(recounted(times, values, groups))
        return event

    return add


def main() -> None:
    """Run until it is ended."""
    arguments = argparse.ArgumentParser(prog="python -m bench.peer_quix", description=__doc__)
    for name in ("bootstrap", "events", "output", "columns", "group", "state-dir"):
        arguments.add_argument(f"--{name}", required=True)
    arguments.add_argument("--kind", choices=("state", "window"), default="state")
    arguments.add_argument("--changelog", action="store_true", help="store state in Kafka")
    options = arguments.parse_args()
    app = Application(
        broker_address=options.bootstrap,
        consumer_group=options.group,
        auto_offset_reset="earliest",
        state_dir=options.state_dir,
        use_changelog_topics=options.changelog,
        producer_extra_config={"compression.type": "lz4", "linger.ms": 5},
        loglevel="WARNING",
    )
    json_codec = {
        "value_deserializer": OrjsonDeserializer(),
        "value_serializer": OrjsonSerializer(),
    }
    events = app.topic(
        options.events, timestamp_extractor=lambda value, *_: value["event_time_ms"], **json_codec
    )
    output = app.topic(options.output, value_serializer=OrjsonSerializer())
    groups = read_groups(options.columns)
    stream = app.dataframe(events)
    if options.kind == "window":
        ((length_ms, aggregates, names),) = groups["card_id"]
        aggregations = dict(zip(names, (_AGGREGATIONS[a]() for a in aggregates), strict=True))
        # Both of its ends belong to a window of Quix; and only the last event tells the id.
        stream = stream.sliding_window(length_ms - 1).agg(
            transaction_id=agg.Latest("transaction_id"), **aggregations
        ).current()  # fmt: skip
    else:
        for n, (key, windows) in enumerate(groups.items()):
            if n:
                stream = stream.group_by(key, **json_codec)
            stream = stream.apply(windows_of(windows, key), stateful=True)
    stream.to_topic(output)
    app.run()


if __name__ == "__main__":
    main()
