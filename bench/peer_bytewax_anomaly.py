"""The windows and scores of ``bench/anomaly.py`` in Bytewax: ``stateful_batch`` by machine.

Bytewax's event-time windows cannot keep a machine's first windows, so a machine is its key's state.
The model is asked once for all windows that a batch closes, as the plain loop does.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from typing import Any

import bytewax.operators as op
from bytewax.connectors.kafka import KafkaSinkMessage
from bytewax.connectors.kafka import operators as kop
from bytewax.dataflow import Dataflow
from bytewax.operators import StatefulBatchLogic
from bytewax.testing import cluster_main


class Logic(StatefulBatchLogic[bytes, dict[str, Any], Any]):
    """A machine."""

    def __init__(self, machine: Any) -> None:
        self._machine = machine

    def on_batch(self, values: list[Any]) -> tuple[Iterable[dict[str, Any]], bool]:
        closed = [window for v in values if (window := self._machine.add(v)) is not None]
        return closed, StatefulBatchLogic.RETAIN

    def snapshot(self) -> Any:
        return self._machine


def flow(options: argparse.Namespace) -> Dataflow:
    """The dataflow."""
    # NumPy and ONNX Runtime, which this environment has not, after all that it has.
    sys.path.append(options.libraries)
    import orjson

    from bench.machine_windows import Machine, Scorer

    scorer = Scorer(options.model)
    result = Dataflow("anomaly")
    source = kop.input(
        "source", result, brokers=[options.bootstrap], topics=[options.events], batch_size=5_000
    )
    stream = op.map("parse", source.oks, lambda message: orjson.loads(message.value))
    keyed = op.key_on("by_machine", stream, lambda reading: reading["machine"])
    windows = op.stateful_batch("windows", keyed, lambda state: Logic(state or Machine("")))
    named = op.flat_map_batch("score", windows, lambda batch: _scored(scorer, batch))
    kop.output("sink", named, brokers=[options.bootstrap], topic=options.output)
    return result


def _scored(scorer: Any, batch: list[tuple[str, dict[str, Any]]]) -> Iterable[Any]:
    windows = [window | {"machine": key} for key, window in batch]
    return [KafkaSinkMessage(key, value) for key, value in scorer.records(windows)]


def main() -> None:
    """Run until it is ended."""
    parser = argparse.ArgumentParser(prog="python -m bench.peer_bytewax_anomaly")
    for name in ("bootstrap", "events", "output", "model", "libraries"):
        parser.add_argument(f"--{name}", required=True)
    print("started", flush=True)
    cluster_main(flow(parser.parse_args()), [], 0)


if __name__ == "__main__":
    main()
