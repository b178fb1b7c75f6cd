"""Ranking on Online Retail without an engine: what new versions and online learning are worth.

``python -m bench.retail`` trains a version on the first half of the log and plays the second half:
every fourth basket is asked for just before it is taken. It compares, on the same requests,

- the version of the half as it is,
- the same with embeddings that follow the baskets (``udfs.ranking.online``),
- the version that is trained anew after three quarters, on the last quarter.

It also takes the time of a request's parts. The figures of ``streamscore train`` with its baselines
are those of its ``metrics.json``. Prints a table and writes ``build/bench/retail.json``.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from jobs import ranking_data
from jobs.environment import BUILD, ROOT
from jobs.ranking_models import Score, builder, model_of
from jobs.ranking_training import split_of
from jobs.settings import Settings, load
from udfs.ranking.arrays import DAY_MS
from udfs.ranking.candidates import candidates
from udfs.ranking.evaluation import Case, Tally, ranked_by
from udfs.ranking.examples import ExampleOptions, examples_before, replay_of, wanted_of
from udfs.ranking.features import pair_features
from udfs.ranking.log import PurchaseLog
from udfs.ranking.online import OnlineEmbeddings, OnlineOptions
from udfs.ranking.replay import Replay
from udfs.ranking.views import view_of

EVERY = 4
TIMED = 300


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, default=ROOT / "conf" / "feed.yaml")
    parser.add_argument("--rate", type=float, default=OnlineOptions().rate, help="of online steps")
    parser.add_argument("--filter-seen", action="store_true")
    options = parser.parse_args(argv)
    settings = load(options.config, {"ranking.filter_seen": options.filter_seen})
    data = ranking_data.load(settings, None, False, lambda what, part: None)
    report = {"data": data.source, "filter_seen": options.filter_seen, "rate": options.rate}
    report |= measured(settings, data.log, options.rate)
    report["load_average"] = os.getloadavg()[0]
    folder = BUILD / "bench"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "retail.json").write_bytes(orjson.dumps(report, option=orjson.OPT_INDENT_2))
    sys.stdout.write(orjson.dumps(report, option=orjson.OPT_INDENT_2).decode() + "\n")
    return 0


def measured(settings: Settings, log: PurchaseLog, rate: float) -> dict[str, Any]:
    half, late = split_of(log, 0.5), split_of(log, 0.75)
    first, second = score_at(settings, log, half), score_at(settings, log, late)
    third = log.since(half).before(late)
    fourth = log.since(late)
    fixed, following, anew = (version(settings, log, at) for at in (half, half, late))
    learner = OnlineEmbeddings(fixed.index, OnlineOptions(rate=rate))
    following.index = learner.index
    figures = {
        "third quarter, version of the half": played(fixed, third, first),
        "third quarter, the same with online embeddings": played(following, third, first, learner),
        "last quarter, version of the half": played(fixed, fourth, first),
        "last quarter, the same with online embeddings": played(following, fourth, first, learner),
        "last quarter, version trained at three quarters": played(anew, fourth, second),
    }
    return {"figures": figures, "microseconds": timed(anew, second)}


def score_at(settings: Settings, log: PurchaseLog, split_ms: int) -> Score:
    """A ranker of what was before an event time."""
    ranking, training = settings.ranking, settings.training
    assert ranking is not None
    chosen = ExampleOptions(
        training.ranking.folds, training.ranking.fold / DAY_MS, training.ranking.negatives
    )
    build, asked = builder(settings), ranking.candidate_options
    examples = examples_before(log, split_ms, build, asked, chosen, lambda what, part: None)
    with model_of(settings, examples, lambda what, part: None) as made:
        return made.score


def version(settings: Settings, log: PurchaseLog, split_ms: int) -> Replay:
    assert settings.ranking is not None
    return replay_of(log, split_ms, builder(settings), settings.ranking.candidate_options)


def played(
    replay: Replay, log: PurchaseLog, score: Score, learner: OnlineEmbeddings | None = None
) -> dict[str, Any]:
    """Play a part of the log, ask for every fourth basket."""
    tally, ranker = Tally(), ranked_by(score)
    for request, wanted, count in cases(replay, log, learner):
        tally.add(ranker(request), wanted, count)
    return tally.measured(len(replay.index)).document()


def cases(replay: Replay, log: PurchaseLog, learner: OnlineEmbeddings | None) -> Iterator[Case]:
    """What ``every_basket`` gives of some baskets; the learner takes a basket after its request."""
    for number, basket in enumerate(log.in_baskets()):
        rows = replay.rows[basket.items]
        if number % EVERY == 0:
            request = replay.request(basket.user, basket.time_ms)
            wanted = wanted_of(request, rows, replay.options.filter_seen)
            if wanted:
                yield request, wanted, len(wanted)
        replay.take(basket)
        if learner is not None:
            learner.take(rows)


def timed(replay: Replay, score: Score) -> dict[str, float]:
    """Median CPU time of a request's parts, in microseconds, of this thread alone."""
    index, users = replay.index, list(replay.users.values())[:TIMED]
    now_ms = max(state.last_ms for state in replay.users.values())
    took: dict[str, list[float]] = {}

    def part(name: str, call: Any) -> Any:
        begun = time.thread_time()
        found = call()
        took.setdefault(name, []).append((time.thread_time() - begun) * 1e6)
        return found

    for state in users:
        view = part("view", lambda state=state: view_of(index, state, now_ms))
        part("exact neighbours of all items", lambda view=view: index.embeddings @ view.vector)
        found = part(
            "candidates",
            lambda view=view: candidates(index, replay.counters, view, replay.options),
        )
        rows = part(
            "features",
            lambda view=view, found=found: pair_features(index, replay.counters, view, found),
        )
        part("scores", lambda rows=rows: score(rows))
    return {name: round(float(np.median(values)), 1) for name, values in took.items()}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
