"""The requests of ``bench/ranking.py`` ranked in Bytewax: ``stateful_batch`` by user.

A user's purchases are their key's state; the model is asked once for all requests of a batch, as
the plain loop does. It answers the same gateway as the job.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import bytewax.operators as op
from bytewax.connectors.kafka import KafkaSinkMessage
from bytewax.connectors.kafka import operators as kop
from bytewax.dataflow import Dataflow
from bytewax.operators import StatefulBatchLogic
from bytewax.testing import cluster_main


class Logic(StatefulBatchLogic[dict[str, Any], Any, Any]):
    """A user."""

    def __init__(self, ranker: Any, state: Any) -> None:
        self._ranker, self._state = ranker, state

    def on_batch(self, values: list[dict[str, Any]]) -> tuple[Iterable[Any], bool]:
        asked = []
        for event in values:
            if event["kind"] == "purchase":
                self._ranker.buy(self._state, event)
            elif event["kind"] == "request":
                asked.append((event, self._ranker.view(self._state, event["event_time_ms"])))
        return asked, StatefulBatchLogic.RETAIN

    def snapshot(self) -> Any:
        return self._state


def flow(options: argparse.Namespace) -> Dataflow:
    """The dataflow."""
    # This project's libraries, which this environment has not, after all that it has.
    sys.path.append(options.libraries)
    import orjson

    from bench.ranking_core import Ranker
    from udfs.ranking.candidates import CandidateOptions
    from udfs.ranking.users import UserState

    ranker = Ranker(Path(options.version), CandidateOptions(count=options.candidates))
    result = Dataflow("ranking")
    source = kop.input(
        "source", result, brokers=[options.bootstrap], topics=[options.events], batch_size=1_000
    )
    stream = op.map("parse", source.oks, lambda message: orjson.loads(message.value))
    keyed = op.key_on("by_user", stream, lambda event: event["user"])
    asked = op.stateful_batch("users", keyed, lambda state: Logic(ranker, state or UserState()))
    replies = op.flat_map_batch("rank", asked, lambda batch: _replies(ranker, batch))
    kop.output("sink", replies, brokers=[options.bootstrap], topic=options.replies)
    return result


def _replies(ranker: Any, batch: list[tuple[str, Any]]) -> Iterable[Any]:
    return [KafkaSinkMessage(*reply) for reply in ranker.rank([asked for _, asked in batch])]


def main() -> None:
    """Run until it is ended."""
    parser = argparse.ArgumentParser(prog="python -m bench.peer_bytewax_ranking")
    for name in ("bootstrap", "events", "replies", "version", "libraries"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--candidates", type=int, required=True)
    found = flow(parser.parse_args())
    print("started", flush=True)
    cluster_main(found, [], 0)


if __name__ == "__main__":
    main()
