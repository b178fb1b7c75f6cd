"""`streamscore demo-feed`: purchases to a ranking model, to a feed over HTTP, to the next model.

Data, a first version, Kafka, model server, Flink job, gateway; then the last part of the log, each
basket a visitor who asks for a ranking and then buys. In between the model server is killed, and
half-way the next version is trained on what the job has written. It works below
``build/demo-feed``; what it starts, it stops.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from threading import Event, Thread

import numpy as np
import orjson

from jobs import ranking_data, ranking_training, settings
from jobs.console import console, facts_table
from jobs.demo import retail, steps
from jobs.demo.feed import page, topics
from jobs.demo.feed.crowd import TOP, Answer, Crowd, Visit, visits
from jobs.demo.feed.learning import compared, learn, story
from jobs.demo.feed.live import FeedView
from jobs.demo.feed.page import FeedOutcome
from jobs.demo.feed.stage import CONFIG, Stage, first_version, open_stage
from jobs.environment import BUILD
from udfs.ranking.evaluation import Measured
from udfs.ranking.log import PurchaseLog

__all__ = ["FeedDemoOptions", "run"]

DEMO = BUILD / "demo-feed"
DAY_MS = 86_400_000
LIVE_FROM = 0.8
"""The part of the purchases that is history when the demo begins."""

OUTAGE_AT, OUTAGE_S = 0.4, 2.0
_WARM_UP = 40  # users
_BACK_S = 5.0  # until the breaker has tried a server that is back
_ENDS_BEFORE_DAYS = 5


@dataclass(frozen=True, slots=True)
class FeedDemoOptions:
    """What to show.

    Attributes:
        seconds: How long the replay takes, the training between its halves apart.
        requests: How many visitors at most.
        live: Draw a panel where the terminal can, else print lines.
        keep: Leave everything running after the report until Ctrl-C, for its web page.
        users: A synthetic log of so many users; 0 takes Online Retail if it is there.
    """

    seconds: float = 90.0
    requests: int = 1_800
    live: bool = True
    keep: bool = False
    users: int = 0


def run(options: FeedDemoOptions) -> FeedOutcome:
    """Run the whole demo; everything it started has ended when it returns or raises.

    Writes ``report.json`` and ``report.html`` below ``build/demo-feed``.

    Raises:
        NotReadyError: something it needs is missing or does not start, or another demo runs.
        JobError: the job failed or stands still.
        KeyboardInterrupt: Ctrl-C, SIGTERM or SIGHUP.
    """
    begun_s = time.monotonic()
    with steps.alone(DEMO) as started:
        data = steps.step("data", lambda _: _data(options.users), _data_text)
        live_ms = ranking_training.split_of(data.log, LIVE_FROM)
        first_version(DEMO, data, live_ms)
        stage = open_stage(DEMO, started)
        past = data.log.before(live_ms)
        stage.remember(past)
        stage.warm_up(past.user_ids[past.users[-_WARM_UP:]].tolist(), live_ms - 1)
        outcome = _perform(options, stage, data, live_ms)
        _report(outcome, begun_s)
        if options.keep:
            _linger(stage)
    return outcome


def _data(users: int) -> ranking_data.TrainingData:
    """The log, moved by whole days so that it ends days ago: the page's visitors come now."""
    if users:
        log = retail.synthetic(users=users, items=300, days=120)
        found = ranking_data.TrainingData(log, "synthetic, small")
    else:
        found = ranking_data.load(settings.load(CONFIG), None, False, lambda _s, _d: None)
    now_ms = time.time_ns() // 1_000_000
    days = (now_ms - int(found.log.times_ms[-1])) // DAY_MS - _ENDS_BEFORE_DAYS
    moved = replace(found.log, times_ms=found.log.times_ms + days * DAY_MS)
    return replace(found, log=moved)


def _data_text(data: ranking_data.TrainingData) -> str:
    log = data.log
    return (
        f"{data.source}: {len(log):,} purchases of {len(log.user_ids):,} users, "
        f"{len(log.item_ids):,} items"
    )


def _perform(
    options: FeedDemoOptions, stage: Stage, data: ranking_data.TrainingData, live_ms: int
) -> FeedOutcome:
    chosen = _chosen(list(visits(data.log.since(live_ms))), options.requests)
    half = len(chosen) // 2
    half_ms = chosen[half].time_ms
    crowd = Crowd(stage.url, time.monotonic())
    outages = [_play(options, crowd, chosen[:half], stage, outage=True)]
    learnt = learn(stage, half_ms)
    learnt_s = time.monotonic() - crowd.started_s
    begun_s = time.monotonic()
    _play(options, crowd, chosen[half:], stage, outage=False)
    seconds = time.monotonic() - begun_s
    versions, same = list[tuple[float, int]](), dict[int, Measured]()
    if learnt.trained is not None:
        number = learnt.trained.version.version
        versions = [(learnt_s, number)]
        same = compared(stage, (number - 1, number), half_ms)
    accounts = steps.step(
        "accounts",
        lambda tell: _accounts(stage, crowd, chosen, tell),
        lambda found: f"{sum(a != b for _, a, b in found)} differences",
    )
    facts = {
        "data": data.source,
        "requests": f"{len(chosen):,}, {(len(chosen) - half) / seconds:.0f} a second, candidates "
        f"{stage.settings.ranking.candidates if stage.settings.ranking else 0}",
        "limit of an answer": f"{stage.settings.gateway.deadline} ms, then popular items",
        "restarts of the job": str(stage.job.restarts()),
    }
    popular = _popular_hits(data.log.before(live_ms), chosen)
    told = [
        _answered("first", crowd.answers[:half], outages[0]),
        story(learnt),
        _answered("second", crowd.answers[half:]),
        *_worth(same),
    ]
    return FeedOutcome(facts, crowd.answers, popular, outages, versions, accounts, told)


def _answered(
    half: str, answers: Sequence[Answer], outage: tuple[float, float] | None = None
) -> str:
    """Who answered in a half of the replay, in words."""
    others = [one for one in answers if one.by != "model"]
    text = f"In the {half} half {len(answers) - len(others):,} of {len(answers):,} requests were "
    text += "answered by the model"
    if outage is not None:
        begin_s, end_s = outage[0], outage[1] + _BACK_S
        during = sum(begin_s <= one.at_s <= end_s for one in others)
        text += (
            f"; of the {len(others):,} others, which got popular items, {during:,} came while its "
            f"server was killed, for {outage[1] - outage[0]:.0f} s, or in the {_BACK_S:.0f} s after"
        )
    return f"{text}."


def _worth(same: dict[int, Measured]) -> list[str]:
    """What the newer of two versions is worth, in words."""
    if not same:
        return []
    (old, before), (new, after) = same.items()
    return [
        f"On the {after.requests:,} requests of the second half the hit rate of version {new} is "
        f"{after.hit_rate:.3f}, and version {old} would have had {before.hit_rate:.3f}: both were "
        "recomputed from the topics."
    ]


def _chosen(all_visits: list[Visit], most: int) -> list[Visit]:
    """At most so many visits, evenly over the time."""
    if len(all_visits) <= most:
        return all_visits
    at = np.linspace(0, len(all_visits) - 1, most).astype(int)
    return [all_visits[n] for n in at]


def _play(
    options: FeedDemoOptions, crowd: Crowd, some: list[Visit], stage: Stage, *, outage: bool
) -> tuple[float, float]:
    """Half of the replay; returns when the model server did not run."""
    seconds = options.seconds / 2
    ended, times = Event(), [0.0, 0.0]

    def kill() -> None:
        if ended.wait(seconds * OUTAGE_AT):
            return
        times[0] = time.monotonic() - crowd.started_s
        stage.server.kill()
        ended.wait(min(OUTAGE_S, seconds / 5))
        stage.server.start()
        times[1] = time.monotonic() - crowd.started_s

    killer = Thread(target=kill, name="outage")
    with FeedView(console, crowd, stage.server, plain=not options.live):
        if outage:
            killer.start()
        try:
            crowd.run(some, seconds)
        finally:
            ended.set()
            if outage:
                killer.join()
    return times[0], times[1]


def _accounts(
    stage: Stage, crowd: Crowd, chosen: list[Visit], tell: steps.Tell
) -> list[tuple[str, int, int]]:
    """What was sent and what is found; closes what the feedback join still waits for."""
    joined = stage.join_all(chosen[-1].time_ms + 2 * DAY_MS, crowd.linked, tell)
    sent = len(crowd.answers) + len(stage.beside.answers)
    names = stage.settings.topics
    kinds = topics.kinds_in(stage.settings)
    replies = {one["request_id"] for one in topics.documents(stage.settings, names.predictions)}
    refused = sum(1 for _ in topics.documents(stage.settings, names.dead_letters))
    refused += sum(1 for _ in topics.documents(stage.settings, names.duplicates))
    answered = sum(not one.by.startswith("HTTP") for one in crowd.answers)
    return [
        ("requests, and answers with items", len(crowd.answers), answered),
        ("requests, warm-up among them, and those in Kafka", sent, kinds["request"]),
        ("requests in Kafka, and those the job replied to", kinds["request"], len(replies)),
        ("purchases, and those in Kafka", crowd.bought, kinds["purchase"]),
        (
            "purchases of what was shown, and those the feedback join counted",
            crowd.linked,
            joined,
        ),
        ("records refused by the job", 0, refused),
    ]


def _popular_hits(past: PurchaseLog, chosen: list[Visit]) -> float:
    """Hit rate of the ten items bought most in the last 14 days of history."""
    recent = past.since(int(past.times_ms[-1]) - 14 * DAY_MS)
    counts = np.bincount(recent.items, minlength=len(past.item_ids))
    best = set(past.item_ids[np.argsort(-counts)[:TOP]].tolist())
    return float(np.mean([bool(best & set(visit.items)) for visit in chosen]))


def _report(outcome: FeedOutcome, begun_s: float) -> None:
    took = np.array([one.took_ms for one in outcome.answers])
    versions = sorted({one.version for one in outcome.answers if one.version is not None})
    numbers = {
        "requests": len(took),
        "by": {by: sum(one.by == by for one in outcome.answers) for by in _makers(outcome)},
        "hit_rate": {str(v): page.hit_rate(outcome.answers, v) for v in versions},
        "hit_rate_popular": outcome.popular,
        "p50_ms": float(np.percentile(took, 50)),
        "p99_ms": float(np.percentile(took, 99)),
        "told": list(outcome.told),
        "accounts": [{"what": text, "sent": a, "found": b} for text, a, b in outcome.accounts],
    }
    (DEMO / "report.json").write_bytes(orjson.dumps(numbers, option=orjson.OPT_INDENT_2))
    html = DEMO / "report.html"
    html.write_text(page.page(outcome), encoding="utf-8")
    shown = {
        "requests": f"{len(took):,}",
        "answers": ", ".join(f"{n:,} by {by}" for by, n in numbers["by"].items()),  # type: ignore[attr-defined]
        "hit rate@10": ", ".join(
            f"version {v} {page.hit_rate(outcome.answers, v):.3f}" for v in versions
        )
        + f", popular items {outcome.popular:.3f}",
        "latency": f"p50 {numbers['p50_ms']:,.0f} ms, p99 {numbers['p99_ms']:,.0f} ms",
        "unaccounted": f"{outcome.unaccounted:,}",
    }
    console.print(facts_table("streamscore feed demo", shown))
    for sentence in outcome.told:
        console.print(sentence)
    console.print(f"report: {html}", soft_wrap=True)
    console.print(f"the whole demo took {time.monotonic() - begun_s:.0f} s\n")


def _makers(outcome: FeedOutcome) -> list[str]:
    return sorted({one.by for one in outcome.answers})


def _linger(stage: Stage) -> None:
    console.print(f"\nthe feed's page: http://{stage.gateway.address}/ ; end with Ctrl-C")
    with suppress(KeyboardInterrupt):
        while True:
            time.sleep(1.0)
