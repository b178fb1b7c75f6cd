"""A feed learns from what it is answered, and bots are stopped: one run with real Kafka and Flink.

``python -m bench.learning`` trains a version on the first 80 % of the log, feeds them to the job as
history, and plays the rest: each basket is a visitor who asks over HTTP and then buys. Half-way it
trains on the topics as ``streamscore train --from training`` does; the running job follows. The
second half's requests are then ranked by both versions, recomputed from the topics. At last it
trains once more, then bots ask for real users and click on what is ranked last, and it trains
again: the gate must refuse what is learnt of that.

Results: hit rate, NDCG and coverage of the new version on the second half's requests, beside those
of the one before; the live hit rate and latencies of the halves. What was said of each version is
in build/bench/learning.json too; exit code 1 if one of the three fails.

Example:
  python -m bench.learning                     # 8 minutes
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from bench.common import BENCH, Result, command_line, finish, machine, versions
from bench.common import compared as beside
from jobs import ranking_data, ranking_training, settings
from jobs.demo import steps
from jobs.demo.feed.crowd import Answer, Bots, Crowd, Visit, visits
from jobs.demo.feed.learning import Learnt, compared, learn, story
from jobs.demo.feed.stage import CONFIG, Stage, first_version, open_stage
from jobs.ranking_data import TrainingData
from model_server.repository import list_versions
from udfs.ranking.arrays import DAY_MS

LIVE_FROM = 0.8
WARM_UP = 40


def main(argv: list[str]) -> int:
    parser = command_line("learning", __doc__)
    parser.add_argument("--requests", type=int, default=3_200, help="visits at most")
    parser.add_argument("--rate", type=float, default=40.0, help="visits a second at most")
    parser.add_argument("--bots", type=int, default=2, help="bots to a visitor of the second half")
    options = parser.parse_args(argv)
    about = machine()
    data = ranking_data.load(settings.load(CONFIG), None, False, lambda _s, _d: None)
    folder = BENCH / "learning"
    with steps.alone(folder):
        report = played(folder, data, options.requests, options.rate, options.bots)
    document = {
        "machine": about,
        "versions": versions(),
        "settings": {"config": CONFIG.name, "changed": {}, **vars(options)},
        "runs": [{"name": "learning", **report}],
        "failures": [what for what, held in report["held"].items() if not held],
    }
    title = "A feed that learns"
    return finish(
        "learning", title, document, results_of(report), quick=False, baseline="version 1"
    )


def results_of(report: Mapping[str, Any]) -> list[Result]:
    """The versions' hit rates on the same requests, and the live figures."""
    results = []
    if same := report.get("second half, recomputed"):
        old, new = same.values()
        for figure in ("hit_rate", "ndcg", "coverage"):
            results.append(beside(f"same_requests_{figure}", new[figure], "share", old[figure]))
    first, second = report["first half, live"], report["second half, live"]
    for figure, unit in (("hit_rate", "share"), ("p50_ms", "ms"), ("p99_ms", "ms")):
        note = "live: the second half's beside the first's"
        results.append(beside(f"live_{figure}", second[figure], unit, first[figure], note))
    return results


def played(
    folder: Path,
    data: TrainingData,
    requests: int,
    rate: float,
    bots: int,
    changes: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """The whole run.

    Args:
        folder: To work in.
        data: The log.
        requests: Visits at most, of the last fifth of the log.
        rate: Visits a second at most.
        bots: How many for each visitor of the second half.
        changes: Of the settings.
    """
    live_ms = ranking_training.split_of(data.log, LIVE_FROM)
    past = data.log.before(live_ms)
    live = list(visits(data.log.since(live_ms)))
    chosen = [live[n] for n in np.linspace(0, len(live) - 1, min(len(live), requests)).astype(int)]
    half = len(chosen) // 2
    first, second = chosen[:half], chosen[half:]
    with ExitStack() as started:
        first_version(folder, data, live_ms, changes)
        stage = open_stage(folder, started, changes)
        stage.remember(past)
        stage.warm_up(past.user_ids[past.users[-WARM_UP:]].tolist(), live_ms - 1)
        before = _sent(Crowd(stage.url, time.monotonic()), first, rate, "first half")
        learnt = learn(stage, second[0].time_ms)
        after = _sent(Crowd(stage.url, time.monotonic()), second, rate, "second half")
        report = _of_versions(stage, learnt, second[0].time_ms, before, after)
        report |= _poisoned(stage, second, rate, bots, before.linked + after.linked)
    report["data"] = data.source
    report["held"] = {
        "a new version was published and followed": learnt.trained is not None,
        "its hit rate is higher on the same requests": report["gain"] > 0,
        "the poisoned one was refused and the old one goes on": report["poison"]["stopped"],
    }
    return report


def _sent(crowd: Crowd, some: Sequence[Visit], rate: float, name: str) -> Crowd:
    def send(_: steps.Tell) -> Crowd:
        crowd.run(some, len(some) / rate)
        return crowd

    return steps.step(name, send, lambda it: str(_figures(it.answers)))


def _figures(answers: Sequence[Answer]) -> dict[str, Any]:
    took = [one.took_ms for one in answers]
    return {
        "requests": len(answers),
        "by the model": sum(one.by == "model" for one in answers),
        "versions": sorted({one.version for one in answers if one.version is not None}),
        "hit_rate": round(float(np.mean([one.hit for one in answers])), 4),
        "p50_ms": round(float(np.percentile(took, 50)), 1),
        "p99_ms": round(float(np.percentile(took, 99)), 1),
    }


def _of_versions(
    stage: Stage, learnt: Learnt, since_ms: int, before: Crowd, after: Crowd
) -> dict[str, Any]:
    report: dict[str, Any] = {
        "told": story(learnt),
        "first half, live": _figures(before.answers),
        "second half, live": _figures(after.answers),
        "gain": 0.0,
    }
    if learnt.trained is not None:
        number = learnt.trained.version.version
        same = compared(stage, (number - 1, number), since_ms)
        report["second half, recomputed"] = {
            f"version {n}": one.document() for n, one in same.items()
        }
        report["gain"] = round(same[number].hit_rate - same[number - 1].hit_rate, 5)
    return report


def _poisoned(
    stage: Stage, visitors: Sequence[Visit], rate: float, count: int, linked: int
) -> dict[str, Any]:
    """Train once more, then let bots click and train again: what came of both."""
    end_ms = visitors[-1].time_ms + 2 * DAY_MS
    _joined(stage, end_ms, linked)
    control = learn(stage, end_ms, "once more")
    present = list_versions(stage.settings.model.path, stage.settings.model.name)
    bots = Bots(stage.url, time.monotonic())
    for _ in range(count):
        after_ms = end_ms - visitors[0].time_ms
        moved = [replace(one, time_ms=one.time_ms + after_ms) for one in visitors]
        _sent(bots, moved, rate, "bots")
        end_ms = moved[-1].time_ms + 2 * DAY_MS
    _joined(stage, end_ms, linked + bots.linked)
    learnt = learn(stage, end_ms, "poisoned model")
    left = list_versions(stage.settings.model.path, stage.settings.model.name)
    is_refused = "not published" in learnt.refused and left == present
    return {
        "before the bots": story(control),
        "versions before the bots": present,
        "poison": {
            "clicks": bots.linked,
            "told": story(learnt),
            "stopped": is_refused and stage.answers_with(present[-1], end_ms),
        },
    }


def _joined(stage: Stage, end_ms: int, linked: int) -> None:
    """Wait until the feedback join has written all examples."""
    steps.step(
        "feedback",
        lambda tell: stage.join_all(end_ms, linked, tell),
        lambda joined: f"{joined:,} clicks and purchases joined",
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
