"""The features of ``bench/features.py`` in Bytewax.

Bytewax's windows end at fixed times or at gaps, none at each event. So the windows are a key's
state, in Bytewax's own lowest-level operator for it, ``stateful_batch``: ``stateful_map`` is the
same under two further Python calls per event. Records come and go in Bytewax's batches. Bytewax's
recovery is off, as is its default: no state is stored, in its favour.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from operator import itemgetter
from typing import Any

import bytewax.operators as op
import orjson
from bytewax.connectors.kafka import KafkaSinkMessage
from bytewax.connectors.kafka import operators as kop
from bytewax.dataflow import Dataflow
from bytewax.operators import StatefulBatchLogic
from bytewax.testing import cluster_main

from bench.peer_windows import Group, Window, read_groups

Event = dict[str, Any]
_time_of = itemgetter("event_time_ms")


class KeyLogic(StatefulBatchLogic[Event, Event, Any]):
    """Adds a key's windows to its events."""

    def __init__(self, groups: list[Group]) -> None:
        self._windows = [(Window(ms, aggregates), names) for ms, aggregates, names in groups]

    def on_batch(self, values: list[Event]) -> tuple[Iterable[Event], bool]:
        # A stage hands a batch on key by key: the next one finds it out of the order of time.
        values.sort(key=_time_of)
        for event in values:
            for window, names in self._windows:
                event.update(
                    zip(names, window.add(event["event_time_ms"], event["amount"]), strict=True)
                )
        return values, StatefulBatchLogic.RETAIN

    def snapshot(self) -> Any:
        return self._windows


def flow(options: argparse.Namespace) -> Dataflow:
    """The dataflow."""
    groups = read_groups(options.columns)
    result = Dataflow("features")
    source = kop.input(
        "source", result, brokers=[options.bootstrap], topics=[options.events], batch_size=1_000
    )
    stream = op.map("parse", source.oks, lambda message: orjson.loads(message.value))
    for key, windows in groups.items():
        keyed = op.key_on(f"by_{key}", stream, lambda event, key=key: event[key])
        stated = op.stateful_batch(f"windows_{key}", keyed, lambda _, w=windows: KeyLogic(w))
        stream = op.key_rm(f"all_{key}", stated)
    kop.output(
        "sink",
        op.map("write", stream, _message),
        brokers=[options.bootstrap],
        topic=options.output,
        add_config={"compression.type": "lz4", "linger.ms": "5"},
    )
    return result


def _message(event: Event) -> KafkaSinkMessage[bytes, bytes]:
    return KafkaSinkMessage(key=event["card_id"].encode(), value=orjson.dumps(event))


def main() -> None:
    """Run until it is ended."""
    arguments = argparse.ArgumentParser(prog="python -m bench.peer_bytewax", description=__doc__)
    for name in ("bootstrap", "events", "output", "columns"):
        arguments.add_argument(f"--{name}", required=True)
    arguments.add_argument("--addresses", nargs="+", default=[], help="of all processes")
    arguments.add_argument("--process", type=int, default=0, help="which of them this one is")
    options = arguments.parse_args()
    cluster_main(flow(options), options.addresses, options.process)


if __name__ == "__main__":
    main()
