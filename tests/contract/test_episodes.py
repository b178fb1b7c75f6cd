"""The episodes' operator by the clock: what ends without events, and who has gone silent."""

from __future__ import annotations

from typing import Any

import numpy as np
import orjson
import pytest

from tests.support.flink import PROCESSING_TIME, Subtask
from udfs.alerting.operator import EpisodeOperator
from udfs.alerting.scored import ScoredBatch
from udfs.definition.episode import EpisodeSpec

BEGIN_MS = 1_700_000_000_000
BUCKET = 3


class Clock:
    def __init__(self) -> None:
        self.ms = BEGIN_MS

    def __call__(self) -> int:
        return self.ms


@pytest.fixture
def clock() -> Clock:
    return Clock()


def operator(clock: Clock, hide: Any = None, **changes: Any) -> EpisodeOperator:
    given = {"entity": "machine", "open_at": 1, "of_last": 1, "lateness": 1_000, **changes}
    return EpisodeOperator(EpisodeSpec.model_validate(given), "events", 3_600, hide, clock)


def scores(*rows: tuple[str, int, float]) -> Any:
    n = len(rows)
    return BUCKET, ScoredBatch(
        [entity for entity, _, _ in rows],
        np.array([BEGIN_MS + time_ms for _, time_ms, _ in rows]),
        np.array([(0, time_ms) for _, time_ms, _ in rows]).reshape(n, 2),
        np.array([value for _, _, value in rows]),
        np.full(n, 0.5),
        np.full(n, -1),
        np.zeros(n),
    )


def told(rows: list[Any]) -> list[tuple[str, str, Any]]:
    documents = [orjson.loads(value) for row in rows for _, value in row[0]]
    return [(d["alert_id"], d["state"], d["closed_by"]) for d in documents]


def until(subtask: Subtask, clock: Clock, ms: int) -> list[tuple[str, str, Any]]:
    """The clock goes on; timers go off as it does."""
    found = []
    for now_ms in range(clock.ms, BEGIN_MS + ms + 1, 100):
        clock.ms = now_ms
        due = [t for _, t in subtask.pending(PROCESSING_TIME) if t <= now_ms]
        found += told(subtask.fire()) if due else []
    return found


def test_an_episode_without_events_closes_by_the_clock(clock: Clock) -> None:
    subtask = Subtask(operator(clock, close_after=2_000))
    name = f"m1@{BEGIN_MS}"
    assert told(subtask.run(scores(("m1", 0, 0.9)))) == [(f"{name}#1", "open", None)]
    assert until(subtask, clock, 1_900) == []
    assert until(subtask, clock, 3_000) == [(f"{name}#2", "closed", "no_events")]
    assert until(subtask, clock, 9_000) == []
    again = told(subtask.run(scores(("m1", 1_500, 0.9))))  # it was the source that stood still
    assert again == [(f"{name}#3", "open", None)]


def test_a_restart_gives_everyone_time_again(clock: Clock) -> None:
    before = Subtask(operator(clock, silent_after=2_000))
    before.run(scores(("m1", 0, 0.1), ("m2", 0, 0.1)))
    clock.ms += 60_000
    after = Subtask(operator(clock, silent_after=2_000), before.snapshot())
    after.run(scores(("m2", 60_000, 0.1)))
    assert until(after, clock, 61_900) == []
    assert [t[:2] for t in until(after, clock, 63_000)] == [
        (f"m1@{BEGIN_MS}/silent#1", "open"),
        (f"m2@{BEGIN_MS + 60_000}/silent#1", "open"),
    ]


@pytest.mark.parametrize("events_first", [True, False])
def test_a_job_that_stood_still_accuses_nobody(clock: Clock, events_first: bool) -> None:
    """Events that waited meanwhile come before the timer or after it."""
    subtask = Subtask(operator(clock, silent_after=2_000, close_after=2_000))
    subtask.run(scores(("m1", 0, 0.9), ("m2", 0, 0.1)))
    assert until(subtask, clock, 1_000) == []
    clock.ms += 60_000
    found = [] if events_first else told(subtask.fire())
    found += told(subtask.run(scores(("m2", 60_000, 0.1))))
    assert found + until(subtask, clock, 61_900) == []
    names = f"m1@{BEGIN_MS}", f"m1@{BEGIN_MS}/silent", f"m2@{BEGIN_MS + 60_000}/silent"
    assert [t[0] for t in until(subtask, clock, 64_000)] == [
        f"{names[0]}#2",
        f"{names[1]}#1",
        f"{names[2]}#1",
    ]


def test_silence_ends_with_the_next_event_and_survives_a_restart(clock: Clock) -> None:
    subtask = Subtask(operator(clock, silent_after=1_000))
    subtask.run(scores(("m1", 0, 0.1)))
    silent = f"m1@{BEGIN_MS}/silent"
    assert until(subtask, clock, 2_500) == [(f"{silent}#1", "open", None)]
    after = Subtask(operator(clock, silent_after=1_000), subtask.snapshot())
    assert until(after, clock, 9_000) == [], "it is told once"
    fallback = scores(("m1", 9_000, float("nan")))
    assert told(after.run(fallback)) == [(f"{silent}#2", "closed", "event")]
    again = f"m1@{BEGIN_MS + 9_000}/silent"
    assert until(after, clock, 11_500) == [(f"{again}#1", "open", None)]


def test_timers_do_not_grow_in_number(clock: Clock) -> None:
    subtask = Subtask(operator(clock, silent_after=1_000, close_after=5_000))
    for n in range(50):
        subtask.run(scores(("m1", n, 0.1)))
    for _ in range(3):
        again = operator(clock, silent_after=1_000, close_after=5_000)
        subtask = Subtask(again, subtask.snapshot())
        subtask.run(scores(("m1", 100, 0.1)))
    assert len(subtask.pending(PROCESSING_TIME)) == 1


def test_without_clocks_no_timer_is_set(clock: Clock) -> None:
    subtask = Subtask(operator(clock))
    subtask.run(scores(("m1", 0, 0.9)))
    assert subtask.pending(PROCESSING_TIME) == []


def test_late_scores_are_counted(clock: Clock) -> None:
    subtask = Subtask(operator(clock))
    subtask.run(scores(("m1", 0, 0.1), ("m1", 5_000, 0.1), ("m1", 9_000, 0.1)))
    assert told(subtask.run(scores(("m1", 2_000, 0.9)))) == []
    assert subtask.context.metrics.counters["episode_scores_too_late"].value == 1


def test_a_sensitive_entity_is_hidden(clock: Clock) -> None:
    subtask = Subtask(operator(clock, hide=str.upper))
    ((row,),) = [subtask.run(scores(("m1", 0, 0.9)))]
    ((key, value),) = row[0]
    assert key == b"M1"
    assert b"m1" not in value
