"""`streamscore demo-feed`: purchases to a ranking model, to a feed over HTTP, to the next model.

Data, a first version, Kafka, model server, Flink job, gateway; then the last part of the log, each
basket a visitor who asks for a ranking and then buys. In between the model server is killed, and
half-way the next version is trained on what the job has written. It works below
``build/demo-feed``; what it starts, it stops.
"""

from __future__ import annotations

import shutil
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event, Thread
from typing import Any

import numpy as np
import orjson

from jobs import kafka_topics, ranking_data, ranking_training, settings
from jobs.console import console, facts_table
from jobs.demo import retail, steps
from jobs.demo.feed import page, topics
from jobs.demo.feed.crowd import TOP, Crowd, Visit, visits
from jobs.demo.feed.live import FeedView
from jobs.demo.feed.page import FeedOutcome
from jobs.demo.model_process import ModelProcess, ServerProcess
from jobs.environment import BUILD, ROOT
from jobs.runner import JobError, RunningJob
from jobs.settings import Settings
from jobs.training import Trained, TrainingError
from udfs.ranking.log import PurchaseLog

__all__ = ["FeedDemoOptions", "run"]

CONFIG = ROOT / "conf" / "feed.yaml"
DEMO = BUILD / "demo-feed"
DAY_MS = 86_400_000
LIVE_FROM = 0.8
"""The part of the purchases that is history when the demo begins."""

OUTAGE_AT, OUTAGE_S = 0.4, 5.0
_COUNTED = ("labels", "outside", "elsewhere", "unmatched", "late")
_WAIT_S = 300.0
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
    requests: int = 3_600
    live: bool = True
    keep: bool = False
    users: int = 0


@dataclass(frozen=True)
class _Stage:
    settings: Settings
    changes: dict[str, Any]
    job: RunningJob
    server: ModelProcess
    gateway: ServerProcess


def run(options: FeedDemoOptions) -> FeedOutcome:
    """Run the whole demo; everything it started has ended when it returns or raises.

    Writes ``report.json`` and ``report.html`` below ``build/demo-feed``.

    Raises:
        NotReadyError: something it needs is missing or does not start, or another demo runs.
        JobError: the job failed or stands still.
        KeyboardInterrupt: Ctrl-C, SIGTERM or SIGHUP.
    """
    begun_s = time.monotonic()
    with steps.alone(DEMO), ExitStack() as started:
        try:
            data = steps.step("data", lambda _: _data(options.users), _data_text)
            live_ms = ranking_training.split_of(data.log, LIVE_FROM)
            trained = _first_version(data, live_ms, started)
            stage = _stage(started)
            _history(stage, data.log.before(live_ms))
            outcome = _perform(options, stage, data, live_ms, trained)
            _report(outcome, begun_s)
            if options.keep:
                _linger(stage)
        finally:
            steps.ignore_interrupts()
            console.print("stopping what was started")
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


def _first_version(data: ranking_data.TrainingData, live_ms: int, started: ExitStack) -> Trained:
    shutil.rmtree(DEMO / "models", ignore_errors=True)
    started.callback(shutil.rmtree, DEMO / "checkpoints", ignore_errors=True)
    chosen = settings.load(CONFIG, {"model.path": str(DEMO / "models")})
    past = replace(data, log=data.log.before(live_ms))
    return steps.step(
        "model",
        lambda tell: ranking_training.train(chosen, past, steps.parts(tell)),
        lambda it: f"version {it.version.version}, trained on what was before the demo",
    )


def _stage(started: ExitStack) -> _Stage:
    """Start everything; ``started`` will stop it."""
    bootstrap = steps.step(
        "Kafka", lambda _: steps.broker(DEMO / "stack", started), lambda at: f"fresh, at {at}"
    )
    logs = BUILD / "logs"
    server = ModelProcess(DEMO / "models", "feed", None, logs / "feed-model-server.log")
    steps.step(
        "model server",
        lambda _: started.enter_context(server),
        lambda it: f"at {it.address}",
    )
    changes = _changes(bootstrap, server)
    chosen = settings.load(CONFIG, changes)
    _make_topics(chosen)
    job = steps.step("Flink job", lambda tell: steps.job(chosen, started, tell), steps.job_text)
    gateway = _gateway(changes, logs / "feed-gateway.log")
    steps.step(
        "gateway",
        lambda _: started.enter_context(gateway),
        lambda it: f"http://{it.address}/",
    )
    return _Stage(chosen, changes, job, server, gateway)


def _changes(bootstrap: str, server: ModelProcess) -> dict[str, Any]:
    return {
        "kafka.bootstrap_servers": bootstrap,
        # One partition keeps the order of time across users, too.
        "topics.partitions": 1,
        "model.path": str(DEMO / "models"),
        "model.server": server.address,
        "batch.buckets": 1,
        "feedback.lateness": "1d",  # event time runs thousands of times faster than the clock
        "flink.checkpoint_interval": "10s",
        "flink.checkpoint_dir": str(DEMO / "checkpoints"),
    }


def _gateway(changes: dict[str, Any], log: Path) -> ServerProcess:
    arguments = ["jobs.cli", "gateway", str(CONFIG), "--set", "gateway.port={port}"]
    for name, value in changes.items():
        arguments += ["--set", f"{name}={value}"]
    return ServerProcess("the gateway", arguments, log)


def _make_topics(chosen: Settings) -> None:
    bootstrap = chosen.kafka.bootstrap_servers
    kafka_topics.create_topics(bootstrap, kafka_topics.partitions_of(chosen.topics))
    assert chosen.topics.popularity is not None
    compacted = {chosen.topics.popularity: chosen.topics.partitions}
    kafka_topics.create_topics(bootstrap, compacted, {"cleanup.policy": "compact"})


def _history(stage: _Stage, past: PurchaseLog) -> None:
    def feed(tell: steps.Tell) -> int:
        count = topics.write_history(stage.settings, past)
        _wait(lambda: _count(stage, "interactions") >= count, "the history", tell)
        return count

    steps.step("history", feed, lambda count: f"{count:,} purchases make the users' state")


def _count(stage: _Stage, name: str) -> int:
    return stage.job.counts((name,)).get(name, 0)


def _wait(done: Any, what: str, tell: steps.Tell) -> None:
    begun_s = time.monotonic()
    while not done():
        waited_s = time.monotonic() - begun_s
        if waited_s > _WAIT_S:
            raise JobError(f"{what} was not taken within {_WAIT_S:.0f} s")
        tell(f"{what}, {waited_s:.0f} s")
        time.sleep(0.5)


def _perform(
    options: FeedDemoOptions,
    stage: _Stage,
    data: ranking_data.TrainingData,
    live_ms: int,
    trained: Trained,
) -> FeedOutcome:
    chosen = _chosen(list(visits(data.log.since(live_ms))), options.requests)
    half = len(chosen) // 2
    started_s = time.monotonic()
    crowd = Crowd(f"http://{stage.gateway.address}", started_s)
    outages = [_play(options, crowd, chosen[:half], stage, outage=True)]
    versions = _next_version(stage, started_s, trained)
    _play(options, crowd, chosen[half:], stage, outage=False)
    accounts = steps.step(
        "accounts",
        lambda tell: _accounts(stage, crowd, chosen, tell),
        lambda found: f"{sum(a != b for _, a, b in found)} differences",
    )
    facts = {
        "data": data.source,
        "requests": f"{len(chosen):,} in {options.seconds:.0f} s, candidates "
        f"{stage.settings.ranking.candidates if stage.settings.ranking else 0}",
        "restarts of the job": str(stage.job.restarts()),
    }
    popular = _popular_hits(data.log.before(live_ms), chosen)
    return FeedOutcome(facts, crowd.answers, popular, outages, versions, accounts)


def _chosen(all_visits: list[Visit], most: int) -> list[Visit]:
    """At most so many visits, evenly over the time."""
    if len(all_visits) <= most:
        return all_visits
    at = np.linspace(0, len(all_visits) - 1, most).astype(int)
    return [all_visits[n] for n in at]


def _play(
    options: FeedDemoOptions, crowd: Crowd, some: list[Visit], stage: _Stage, *, outage: bool
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


def _next_version(stage: _Stage, started_s: float, trained: Trained) -> list[tuple[float, int]]:
    """Train on the topics; the job and the server take the version by themselves."""

    def train(tell: steps.Tell) -> Trained | None:
        found = ranking_data.load(stage.settings, None, True, steps.parts(tell))
        try:
            return ranking_training.train(stage.settings, found, steps.parts(tell))
        except TrainingError as exc:
            tell(str(exc))
            console.print(f"no new version: {exc}", soft_wrap=True)
            return None

    made = steps.step(
        "next model",
        train,
        lambda it: "refused" if it is None else f"version {it.version.version}, from the feedback",
    )
    if made is None:
        return []
    wanted = made.version.version
    _wait(lambda: _count(stage, "item_version") >= wanted, "the new version", lambda _: None)
    del trained
    return [(time.monotonic() - started_s, wanted)]


def _accounts(
    stage: _Stage, crowd: Crowd, chosen: list[Visit], tell: steps.Tell
) -> list[tuple[str, int, int]]:
    """What was sent and what is found; closes what the feedback join still waits for."""
    closing = Visit("closing", chosen[-1].time_ms + 2 * DAY_MS, (), ())
    Crowd(crowd.url, crowd.started_s).run([closing], 0.1)
    sent = len(crowd.answers) + 1

    def joined() -> int:
        return sum(_count(stage, f"feedback_{name}") for name in _COUNTED)

    with suppress(JobError):
        _wait(lambda: joined() >= crowd.linked, "the feedback", tell)
    names = stage.settings.topics
    kinds = topics.kinds_in(stage.settings)
    replies = {one["request_id"] for one in topics.documents(stage.settings, names.predictions)}
    refused = sum(1 for _ in topics.documents(stage.settings, names.dead_letters))
    refused += sum(1 for _ in topics.documents(stage.settings, names.duplicates))
    answered = sum(not one.by.startswith("HTTP") for one in crowd.answers)
    return [
        ("requests, and answers with items", len(crowd.answers), answered),
        ("requests, and those in Kafka", sent, kinds["request"]),
        ("requests in Kafka, and those the job replied to", kinds["request"], len(replies)),
        ("purchases, and those in Kafka", crowd.bought, kinds["purchase"]),
        (
            "purchases of what was shown, and those the feedback join counted",
            crowd.linked,
            joined(),
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
    console.print(f"report: {html}", soft_wrap=True)
    console.print(f"the whole demo took {time.monotonic() - begun_s:.0f} s\n")


def _makers(outcome: FeedOutcome) -> list[str]:
    return sorted({one.by for one in outcome.answers})


def _linger(stage: _Stage) -> None:
    console.print(f"\nthe feed's page: http://{stage.gateway.address}/ ; end with Ctrl-C")
    with suppress(KeyboardInterrupt):
        while True:
            time.sleep(1.0)
