"""The demo's main part: the replay, the model server's outage, and counting what comes out."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field

from confluent_kafka import Producer

from jobs.demo.live import LiveView, Snapshot
from jobs.demo.model_process import ModelProcess
from jobs.demo.replay import Content, Replay
from jobs.demo.watch import Recent, Tally, open_reader, output_kinds, watch
from jobs.flink_rest import JobError
from jobs.running_job import TERMINAL_STATES, RunningJob
from jobs.settings import Settings

TICK_S = 0.4
ASK_FLINK_S = 2.0
STALLED_S = 60.0
QUIET_S = 1.0
"""How long to look for more after the last record that was missing."""


@dataclass(frozen=True, slots=True)
class Stage:
    """What the demo plays on.

    Attributes:
        settings: The job's settings.
        job: The running job.
        server: The model server; none if the model is in the job.
    """

    settings: Settings
    job: RunningJob
    server: ModelProcess | None


@dataclass(frozen=True, slots=True)
class Plan:
    """How the demo plays.

    Attributes:
        content: What is sent.
        seconds: How long that takes.
        ramp_s: How long the rate rises.
        outage_at: After which part of the input the model server is stopped.
        outage_s: How long it stays stopped.
    """

    content: Content
    seconds: float
    ramp_s: float
    outage_at: float
    outage_s: float


@dataclass(slots=True)
class Result:
    """What was seen, besides the tally.

    Attributes:
        started_ms: Epoch.
        ended_ms: Epoch.
        outages_ms: When the model server did not serve: from and to, epoch.
        checkpoints: Completed ones.
        restarts: Of the job after a failure.
    """

    started_ms: int = 0
    ended_ms: int = 0
    outages_ms: list[tuple[int, int]] = field(default_factory=list)
    checkpoints: int = 0
    restarts: int = 0


class Performance:
    """One run of a plan on a stage.

    Args:
        stage: Where it plays; the job runs.
        plan: What and how.
    """

    def __init__(self, stage: Stage, plan: Plan) -> None:
        chosen = stage.settings
        self.stage = stage
        self.plan = plan
        self._stop = threading.Event()
        # Cannot be None: the demo's settings have labels.
        topics = {"events": chosen.topics.events, "labels": chosen.topics.labels or ""}
        self._replay = Replay(plan.content, topics, plan.seconds, plan.ramp_s)
        self._expected = plan.content.events
        # An alert of an episode is not of one score.
        threshold = None if chosen.alerts.episodes else chosen.alerts.threshold
        self.tally = Tally(chosen.topics.events, threshold)
        self.result = Result()

    def run(self, view: LiveView) -> None:
        """Play until every input record is accounted for.

        Raises:
            JobError: the job failed, or nothing moved for a minute.
            ReplayError: Kafka refused an input record.
            WatchError: the output cannot be read.
        """
        self.result.started_ms = _now_ms()
        works: list[Callable[[], None]] = [self._watch, self._play]
        if self.stage.server is not None:
            works.append(self._outage)
        with ThreadPoolExecutor(len(works), thread_name_prefix="demo") as pool:
            try:
                self._observe([pool.submit(work) for work in works], view)
            finally:
                self._stop.set()
        self.result.ended_ms = _now_ms()
        with suppress(JobError):
            self._ask_flink()

    @property
    def sent(self) -> int:
        """Records written to the events topic."""
        return self._replay.events_sent

    @property
    def missing(self) -> int:
        """Input records whose end was not seen yet."""
        return self._expected - self.tally.accounted

    def _play(self) -> None:
        bootstrap = self.stage.settings.kafka.bootstrap_servers
        producer = Producer({"bootstrap.servers": bootstrap, "linger.ms": 2, "acks": "all"})
        self._replay.run(producer, self._stop)

    def _watch(self) -> None:
        chosen = self.stage.settings
        kinds = output_kinds(chosen.topics)
        reader = open_reader(chosen.kafka.bootstrap_servers, list(kinds))
        try:
            watch(reader, kinds, self.tally, self._stop)
        finally:
            reader.close()

    def _outage(self) -> None:
        server = self.stage.server
        assert server is not None
        while self._replay.progress < self.plan.outage_at:
            if self._stop.wait(0.05):
                return
        from_ms = _now_ms()
        server.stop()
        if self._stop.wait(self.plan.outage_s):
            return
        server.start()
        self.result.outages_ms.append((from_ms, _now_ms()))

    def _observe(self, works: list[Future[None]], view: LiveView) -> None:
        recent, begun_s = Recent(self.tally), time.monotonic()
        moved_s = asked_s = begun_s
        last: tuple[int, ...] = ()
        while True:
            now_s = time.monotonic()
            _raise_failures(works)
            if now_s - asked_s >= ASK_FLINK_S:
                asked_s = now_s
                self._ask_flink()
            if (seen := self._seen()) != last:
                last, moved_s = seen, now_s
            recent.sample(now_s, self._replay.events_sent)
            view.update(self._snapshot(recent, now_s - begun_s))
            if self._is_complete() and now_s - moved_s >= QUIET_S:
                return
            if now_s - moved_s >= STALLED_S:
                raise JobError(self._stalled())
            time.sleep(TICK_S)

    def _seen(self) -> tuple[int, ...]:
        return self._replay.events_sent, self.tally.accounted, len(self.tally.alerts)

    def _is_complete(self) -> bool:
        """Whether all is there: every event's end, every alert, and the server after its outage."""
        is_served = self.stage.server is None or bool(self.result.outages_ms)
        alerts_missing = self.tally.alerts_due - len(self.tally.alerts)
        return self._replay.is_done and is_served and self.missing <= 0 and alerts_missing <= 0

    def _stalled(self) -> str:
        t = self.tally
        return (
            f"nothing moved for {STALLED_S:.0f} s; {self._replay.events_sent:,} of "
            f"{self._expected:,} records sent, {t.predictions:,} predictions, "
            f"{t.dead_letters.total():,} dead letters, {t.duplicates:,} duplicates, "
            f"{t.shed:,} shed, {len(t.alerts):,} of {t.alerts_due:,} alerts; {self._job_text()}"
        )

    def _job_text(self) -> str:
        job = self.stage.job
        try:
            return f"the job is {job.state()}, last failure: {job.cause()}"
        except JobError as exc:
            return f"Flink does not answer: {exc}"

    def _ask_flink(self) -> None:
        job, state = self.stage.job, ""
        with suppress(JobError):  # too busy to answer; if it never does again, all stands still
            state = job.state()
            self.result.checkpoints = job.checkpoints_completed()
            self.result.restarts = job.restarts()
        if state in TERMINAL_STATES:
            raise JobError(f"the job ended as {state}: {job.cause()}")

    def _server_state(self) -> str:
        server = self.stage.server
        if server is None:
            return "embedded"
        return "serving" if server.is_serving else "stopped"

    def _phase(self) -> str:
        if self._server_state() == "stopped":
            return "replay, model server stopped"
        return "waiting for the last records" if self._replay.is_done else "replay"

    def _snapshot(self, recent: Recent, elapsed_s: float) -> Snapshot:
        t = self.tally
        in_per_s, out_per_s = recent.rates()
        p50_ms, p99_ms = recent.latency_ms()
        return Snapshot(
            phase=self._phase(),
            elapsed_s=elapsed_s,
            input=self._replay.events_sent,
            expected_input=self._expected,
            predictions=t.predictions,
            in_per_s=in_per_s,
            out_per_s=out_per_s,
            p50_ms=p50_ms,
            p99_ms=p99_ms,
            alerts=len(t.alerts),
            fallbacks=t.fallbacks.total(),
            dead_letters=t.dead_letters.total(),
            duplicates=t.duplicates,
            checkpoints=self.result.checkpoints,
            server=self._server_state(),
            flink_url=self.stage.job.rest.url,
            latest_alerts=t.alerts[-10:],
        )


def _raise_failures(works: list[Future[None]]) -> None:
    for work in works:
        if work.done():
            work.result()


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
