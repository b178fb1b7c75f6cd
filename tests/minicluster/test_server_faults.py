"""The model server dies, hangs, slows down and lies; the job goes on and says what happened.

One job for all phases. Events come one at a time, each after the output of the one before, so each
is a batch and a Predict call of its own and the order of the reasons is exact.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from itertools import count, pairwise
from pathlib import Path
from typing import Any

import orjson
import pytest

from jobs.ports import free_port
from jobs.settings import load
from tests.support.checks import check_accounts, check_schemas
from tests.support.fixtures import CONFIG, own_overrides
from tests.support.kafka import Out, Record, Traffic
from tests.support.running import restarts, running
from tests.support.servers import FaultyServerProcess, ModelServerProcess

pytestmark = [pytest.mark.minicluster, pytest.mark.kafka, pytest.mark.timeout(600)]

DEADLINE_MS = 3_000
"""A busy machine may hold a server up for a second; that must not make its answer a timeout."""

FAILURES = 2  # in a row, then the breaker opens; each timeout of a phase costs a deadline
OPEN_MS = 500
PATIENCE = 50
SLACK_MS = 15_000
"""Kafka, the micro-batch and a busy machine; far below the 30 s of the slow server."""

_numbers = count()


def record() -> Record:
    number = next(_numbers)
    value: dict[str, Any] = {
        "transaction_id": f"t{number}",
        "event_time_ms": time.time_ns() // 1_000_000,
        "card_id": f"c{number % 50}",
        "terminal_id": f"m{number % 20}",
        "amount": 10.0,
        "type": "CP",
    }
    return Record(0, value["card_id"].encode(), orjson.dumps(value))


class Bench:
    """The job under test and its clients' view of it."""

    def __init__(self, traffic: Traffic, models: Path, logs: Path, port: int) -> None:
        self.traffic = traffic
        self.real = ModelServerProcess(models, logs / "server.log", port)
        self.faulty = FaultyServerProcess(logs / "faulty.log", port)
        self.slowest_ms = 0

    def one(self) -> Out:
        """Send an event, wait for its prediction."""
        (place,) = self.traffic.send(record())
        self.traffic.poll_until(lambda: place in self.traffic.accounted, 60)
        out = self.traffic.predictions()[place]
        self.slowest_ms = max(self.slowest_ms, waited_ms(out))
        return out

    def reasons(self, events: int) -> list[str | None]:
        return [reason_of(self.one()) for _ in range(events)]

    def until_scored(self) -> Out:
        """Send events until the model scores one again; until then there are only fallbacks."""
        for _ in range(2_000):
            out = self.one()
            if reason_of(out) is None:
                return out
            assert reason_of(out) in ("circuit_open", "unavailable", "timeout")
        raise AssertionError("the model never came back")

    def until_open(
        self, reason: str, first: Out | None = None, failures: int = FAILURES
    ) -> list[Out]:
        """Send events until one meets an open breaker, which is the last of those returned.

        All before it fail for that reason. Those beyond ``failures`` are trials: the breaker's
        pause was over before the event came, which a busy machine may do.
        """
        outs = [] if first is None else [first]
        while not outs or reason_of(outs[-1]) != "circuit_open":
            assert len(outs) < PATIENCE, "the breaker never opened"
            outs.append(self.one())
        failed = outs[:-1]
        assert [reason_of(out) for out in failed] == [reason] * max(failures, len(failed))
        for earlier, later in pairwise(failed[failures - 1 :]):
            since_ms = later.document["scored_time_ms"] - earlier.document["ingest_time_ms"]
            assert since_ms >= OPEN_MS, "called while it was open"
        return outs

    def fail_a_trial(self, reason: str) -> None:
        """Send events until the breaker has tried a call, which fails, and is open again."""
        for _ in range(2_000):
            if reason_of(trial := self.one()) != "circuit_open":
                self.until_open(reason, trial, failures=1)
                return
        raise AssertionError("the breaker never tried again")


def reason_of(out: Out) -> str | None:
    reason: str | None = out.document["fallback_reason"]
    return reason


def waited_ms(out: Out) -> int:
    """From the record's own time, which its producer gave it, to the score; one machine's clock."""
    return int(out.document["scored_time_ms"] - out.document["ingest_time_ms"])


@pytest.fixture(scope="module")
def bench(
    bootstrap: str, models: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Bench]:
    folder = tmp_path_factory.mktemp("server-faults")
    port = free_port()
    overrides = {
        "model.server": f"127.0.0.1:{port}",
        "model.deadline": f"{DEADLINE_MS}ms",
        "model.fallback_score": 0.125,
        "model.breaker": {"failures": FAILURES, "open_for": f"{OPEN_MS}ms", "trial_calls": 1},
        "alerts.threshold": 0.0,
        "batch.buckets": 1,
    }
    settings = load(CONFIG, own_overrides(bootstrap, models, folder) | overrides)
    with Traffic(settings) as traffic:
        bench = Bench(traffic, models, folder, port)
        try:
            with running(settings) as job:
                yield bench
                assert restarts(job) == 0
        finally:
            bench.real.stop()
            bench.faulty.stop()


@pytest.fixture(autouse=True)
def slowest(bench: Bench) -> Iterator[None]:
    """No phase lets an event wait for longer than the deadline and what the way itself takes."""
    bench.slowest_ms = 0
    yield
    assert bench.slowest_ms < DEADLINE_MS + SLACK_MS


@pytest.fixture
def real(bench: Bench) -> Iterator[ModelServerProcess]:
    """The real server at the job's address, the breaker closed."""
    bench.faulty.stop()
    with bench.real as server:
        bench.until_scored()
        yield server


@pytest.fixture
def faulty(bench: Bench) -> Iterator[FaultyServerProcess]:
    """The faulty server at the job's address, behaving well, the breaker closed."""
    with bench.faulty as server:
        bench.until_scored()
        yield server


def test_the_model_scores(bench: Bench, real: ModelServerProcess) -> None:
    assert bench.reasons(20) == [None] * 20
    assert bench.one().document["model"] == {"name": "fraud", "version": 1}


def test_a_killed_server_and_its_return(bench: Bench, real: ModelServerProcess) -> None:
    real.kill()
    bench.until_open("unavailable")
    bench.fail_a_trial("unavailable")
    real.start()
    assert bench.until_scored().document["model"]["version"] == 1
    assert bench.reasons(10) == [None] * 10


def test_a_hung_server_and_its_return(bench: Bench, real: ModelServerProcess) -> None:
    real.signal(signal.SIGSTOP)
    *failed, refused = bench.until_open("timeout")
    assert min(waited_ms(out) for out in failed) >= DEADLINE_MS
    more = [out for out in (bench.one() for _ in range(3)) if reason_of(out) == "circuit_open"]
    assert min(waited_ms(out) for out in (refused, *more)) < OPEN_MS  # it costs no time
    real.signal(signal.SIGCONT)
    bench.until_scored()
    assert bench.reasons(10) == [None] * 10


def test_a_burst_at_a_hung_server(bench: Bench, real: ModelServerProcess) -> None:
    """A batch waits for one of the open calls to end, if they are as many as there may be.

    Each that ends brings the breaker a failure nearer, so the wait ends with the last of them.
    """
    real.signal(signal.SIGSTOP)
    places = set(bench.traffic.send(*(record() for _ in range(300))))
    bench.traffic.poll_until(lambda: places <= bench.traffic.accounted)
    real.signal(signal.SIGCONT)
    outs = [bench.traffic.predictions()[place] for place in places]
    reasons = {reason_of(out) for out in outs}
    assert reasons <= {"timeout", "circuit_open"} and "timeout" in reasons
    assert max(waited_ms(out) for out in outs) < FAILURES * DEADLINE_MS + SLACK_MS
    bench.until_scored()


def test_a_slow_server_and_its_return(bench: Bench, faulty: FaultyServerProcess) -> None:
    faulty.behave("slow")
    *failed, _ = bench.until_open("timeout")
    assert min(waited_ms(out) for out in failed) >= DEADLINE_MS
    faulty.behave("well")
    bench.until_scored()


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        ("more_rows", "bad_response"),
        ("fewer_rows", "bad_response"),
        ("nan", "bad_response"),
        ("above_one", "bad_response"),
        ("below_zero", "bad_response"),
        ("wrong_model", "bad_response"),
        ("broken", "bad_response"),
        ("exhausted", "unavailable"),
    ],
)
def test_a_useless_answer_opens_the_breaker(
    bench: Bench, faulty: FaultyServerProcess, behaviour: str, reason: str
) -> None:
    faulty.behave(behaviour)
    bench.until_open(reason)
    bench.fail_a_trial(reason)
    faulty.behave("well")
    scored = bench.until_scored()
    assert scored.document["model"] == {"name": "fraud", "version": 9}
    assert scored.document["score"] == 0.5


def test_a_refused_request_leaves_the_breaker_closed(
    bench: Bench, faulty: FaultyServerProcess
) -> None:
    faulty.behave("invalid")
    assert bench.reasons(2 * FAILURES) == ["rejected"] * (2 * FAILURES)
    faulty.behave("well")
    assert bench.reasons(1) == [None]


def test_the_job_accounts_for_everything(bench: Bench) -> None:
    traffic = bench.traffic
    traffic.wait_accounted()
    check_accounts(traffic)
    check_schemas(traffic.outputs)
    fallbacks = [o for o in traffic.outputs["predictions"] if o.document["fallback_reason"]]
    assert {out.document["score"] for out in fallbacks} == {0.125}
    assert {out.document["model"]["version"] for out in fallbacks} == {None}
    alerted = {out.place for out in traffic.outputs["alerts"]}
    assert not alerted & {out.place for out in fallbacks}  # a fallback never alerts
