"""When events are shed, which, and what is written of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Self

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from udfs.definition.overload import OverloadSpec
from udfs.definition.schema import Schema
from udfs.overload.board import Board, board_of
from udfs.overload.controller import ALL, STEP_MS, Controller
from udfs.overload.load import INTERVAL_MS, Load
from udfs.overload.pacing import RateLimit, limit_of
from udfs.overload.shedding import Shedding, is_kept

NOW_MS = 1_700_000_000_000
SCHEMA = Schema.model_validate(
    {
        "event": {
            "id": "id",
            "time": {"field": "t"},
            "fields": [
                {"name": "id", "type": "string"},
                {"name": "card", "type": "string", "sensitive": "hash"},
                {"name": "t", "type": "int"},
                {"name": "amount", "type": "float"},
                {"name": "note", "type": "string", "required": False},
                {"name": "unread", "type": "int"},
            ],
        },
        "key": "card",
        "privacy": {"key": "0123456789abcdef"},
        "features": {
            "windows": [
                {"prefix": "card", "key": "card", "windows": ["1h"], "aggregates": ["count"]}
            ]
        },
    }
)


def spec(**changes: Any) -> OverloadSpec:
    return OverloadSpec.model_validate({"low_priority": "amount < 20", "warm_up": 0} | changes)


# -- the controller -----------------------------------------------------------------------------


def driven(controller: Controller, lags: Sequence[tuple[int, float]], start_ms: int = 0) -> int:
    """Let it see lags, each for so many ms, a batch every 10 ms; when that ends."""
    for for_ms, lag_ms in lags:
        for now_ms in range(start_ms, start_ms + for_ms, 10):
            controller.observe(now_ms, lag_ms)
        start_ms += for_ms
    return start_ms


def test_it_begins_when_lag_stands_at_its_limit() -> None:
    controller = Controller(spec())
    driven(controller, [(240, 600)])
    assert not controller.sheds  # a burst: not yet for as long as `sustained`
    driven(controller, [(10, 20), (240, 600)], 240)
    assert not controller.sheds  # one batch without lag, so no queue stood
    driven(controller, [(20, 600)], 490)
    assert (controller.sheds, controller.share, controller.reason) == (True, 0.1, "lag")


def test_between_the_limits_nothing_changes() -> None:
    controller = Controller(spec())
    driven(controller, [(600_000, 300)])
    assert not controller.sheds
    driven(controller, [(300, 600), (600_000, 300)], 600_000)
    assert controller.share == 0.1


def test_it_ends_by_larger_and_larger_shares() -> None:
    controller = Controller(spec(keep=0.4))
    now_ms = driven(controller, [(300, 600), (5_000, 50)])
    shares = []
    for _ in range(6):
        controller.observe(now_ms, 50)
        shares.append(controller.share)
        now_ms = driven(controller, [(STEP_MS, 50)], now_ms)
    assert shares == pytest.approx([0.5, 0.625, 0.78125, 0.9765625, 1.0, 1.0])


def test_an_attempt_that_fails_makes_the_next_one_wait_twice_as_long() -> None:
    controller, waits = Controller(spec(retry="40s")), []
    now_ms = driven(controller, [(300, 600)])
    for _ in range(5):
        began_ms = now_ms
        while controller.share == 0.1:
            controller.observe(now_ms, 50)
            now_ms += 10
        waits.append(round((now_ms - began_ms) / 5_000))
        now_ms = driven(controller, [(300, 200)], now_ms)  # above leave, below enter
        assert controller.share == 0.1
    assert waits == [1, 2, 4, 8, 8]


def test_one_slow_batch_spoils_no_attempt() -> None:
    controller = Controller(spec())
    driven(controller, [(300, 600), (2_000, 50), (10, 5_000), (3_300, 50)])
    assert controller.share == 0.125


def test_an_overload_that_comes_back_soon_had_not_ended() -> None:
    controller = Controller(spec())
    now_ms = driven(controller, [(300, 600), (16_000, 50)])
    assert not controller.sheds
    now_ms = driven(controller, [(300, 600), (9_500, 50)], now_ms)
    assert controller.share == 0.1  # waits 10 s now
    driven(controller, [(12_000, 50)], now_ms)
    assert not controller.sheds


def test_a_pause_without_events_counts_as_calm() -> None:
    controller = Controller(spec())
    now_ms = driven(controller, [(300, 600)])
    assert controller.observe(now_ms + 60_000, 10) == 0.125


def test_a_queue_that_is_full_begins_it_too() -> None:
    controller = Controller(spec(queue={"enter": 0.9, "leave": 0.5}))
    for now_ms in range(0, 300, 10):
        controller.observe(now_ms, 10, 1.0)
    assert (controller.sheds, controller.reason) == (True, "queue")
    for now_ms in range(300, 30_300, 10):
        controller.observe(now_ms, 10, 0.7)
    assert controller.share == 0.1  # lag alone does not end it
    for now_ms in range(30_300, 47_300, 10):
        controller.observe(now_ms, 10, 0.2)
    assert not controller.sheds


def test_nothing_is_shed_while_the_job_warms_up() -> None:
    controller = Controller(spec(warm_up="30s"))
    driven(controller, [(29_900, 9_000)], 77_000)
    assert not controller.sheds
    driven(controller, [(300, 9_000)], 77_000 + 29_900)
    assert controller.sheds


@settings(max_examples=50)
@given(
    st.lists(st.tuples(st.integers(1, 3_000), st.integers(0, 1_500)), max_size=200),
    st.floats(0, 0.99),
    st.integers(0, 1_000),
)
def test_what_always_holds(steps: list[tuple[int, int]], keep: float, sustained: int) -> None:
    """Whatever comes: shares are in [keep, 1], it begins only for a reason, and it ends."""
    controller_spec = spec(keep=keep, sustained=sustained, retry="1m")
    controller = Controller(controller_spec)
    now_ms, over_since = 0, None
    for step_ms, lag_ms in steps:
        now_ms += step_ms
        shed = controller.sheds
        over_since = None if lag_ms < 500 else now_ms if over_since is None else over_since
        share = controller.observe(now_ms, lag_ms)
        assert keep <= share <= ALL and controller.sheds == (share < ALL)
        stood = over_since is not None and now_ms - over_since >= sustained
        assert shed or controller.sheds == stood
        assert not (shed and lag_ms >= 500 and stood) or share == keep
    longest_ms = controller_spec.retry + 60 * STEP_MS
    driven(controller, [(longest_ms, 0)], now_ms)
    assert not controller.sheds


# -- what came, and what can be scored ----------------------------------------------------------


@settings(max_examples=50)
@given(
    st.lists(
        st.tuples(st.integers(0, 700), st.integers(0, 50), st.integers(0, 50), st.booleans()),
        min_size=1,
        max_size=60,
    )
)
def test_rates_are_of_whole_intervals(batches: list[tuple[int, int, int, bool]]) -> None:
    """Against all batches, cut into intervals afterwards."""
    load, now_ms, told = Load(), 0, []
    for step_ms, kept, shed, waits in batches:
        now_ms += step_ms
        load.add(now_ms, kept + shed, waits)
        load.shed(shed)
        told.append((now_ms, kept, shed, waits))
    intervals: list[tuple[float, float, bool]] = []
    while told and told[-1][0] >= (end_ms := told[0][0] + INTERVAL_MS):
        inside = [batch for batch in told if batch[0] < end_ms]
        told = told[len(inside) :]
        kept, shed = sum(b[1] for b in inside), sum(b[2] for b in inside)
        seconds = (told[0][0] - inside[0][0]) / 1_000
        intervals.append(((kept + shed) / seconds, kept / seconds, any(b[3] for b in inside)))
    came, went, _ = intervals[-1] if intervals else (0.0, 0.0, False)
    assert (load.came_per_s, load.kept_per_s) == pytest.approx((came, went))
    carried = [went for _, went, waited in intervals if not waited]
    assert load.carried_per_s == pytest.approx(max(carried, default=0.0))


CAPACITY, HIGH, BATCH_MS = 5_000, 0.1, 50


@dataclass
class Simulation:
    """A queue served in order: the lag of a batch is what waits before it.

    Attributes:
        controller: What sheds from it.
        told: Share and lag in ms at each batch.
    """

    controller: Controller
    waiting: float = 0.0
    now_ms: int = 0
    told: list[tuple[float, float]] = field(default_factory=list)

    def run(self, seconds: float, per_s: float, capacity: float = CAPACITY) -> Self:
        for _ in range(int(seconds * 1_000 / BATCH_MS)):
            came = per_s * BATCH_MS / 1_000
            lag_ms = BATCH_MS / 2 + 1_000 * self.waiting / capacity
            share = self.controller.observe(self.now_ms, lag_ms, 0.0, round(came))
            kept = came * (HIGH + share * (1 - HIGH))
            self.controller.load.shed(round(came - kept))
            self.waiting = max(0.0, self.waiting + kept - capacity * BATCH_MS / 1_000)
            self.told.append((share, lag_ms))
            self.now_ms += BATCH_MS
        return self

    def last(self, seconds: float) -> list[tuple[float, float]]:
        return self.told[-int(seconds * 1_000 / BATCH_MS) :]


@settings(max_examples=30)
@given(
    st.floats(0.1, 0.9),
    st.floats(1.5, 4.5),
    st.lists(st.floats(0.9, 1.1), min_size=10, max_size=240),
)
def test_while_more_comes_than_ever_was_scored_no_attempt_is_made(
    normal: float, times: float, noise: list[float]
) -> None:
    """One queue at the beginning, none after it, and an end soon after the load's."""
    simulation = Simulation(Controller(spec())).run(30, normal * CAPACITY)
    assert not simulation.controller.sheds
    simulation.waiting += 0.3 * times * CAPACITY  # what had waited comes at once
    simulation.run(0.3, 2 * times * CAPACITY)
    for factor in noise:
        simulation.run(1, factor * times * CAPACITY)
    later = simulation.last(len(noise))
    shares = [share for share, _ in later]
    assert {*shares[shares.index(0.1) :]} == {0.1}
    if len(noise) > 60:
        assert max(lag for _, lag in simulation.last(1)) < 100
    simulation.run(30, normal * CAPACITY)
    assert not simulation.controller.sheds


def test_a_load_that_may_be_too_much_is_tried_and_then_left() -> None:
    """What comes falls to less than began the overload, but more than can be scored."""
    simulation = Simulation(Controller(spec())).run(30, 3_000).run(30, 15_000)
    simulation.run(240, 7_000)
    tried = [share > 0.1 for share, _ in simulation.last(240)]
    assert sum(a and not b for a, b in pairwise(tried)) == 1
    assert max(lag for _, lag in simulation.last(240)) < 500
    simulation.run(30, 3_000)
    assert not simulation.controller.sheds


def test_an_overload_soon_after_another_ends_as_soon_as_its_load() -> None:
    """That the first attempts to end a smaller one failed says nothing of it."""
    simulation = Simulation(Controller(spec())).run(30, 3_000).run(90, 5_400).run(20, 3_000)
    assert not simulation.controller.sheds
    simulation.run(20, 15_000).run(20, 3_000)
    assert not simulation.controller.sheds


def test_a_server_that_is_slow_for_a_while_is_asked_again_as_before() -> None:
    simulation = Simulation(Controller(spec())).run(30, 4_000)
    simulation.run(60, 4_000, 1_500)
    assert simulation.controller.sheds
    simulation.run(100, 4_000)
    assert not simulation.controller.sheds


def test_more_can_be_scored_than_ever_before_after_retry_at_most() -> None:
    simulation = Simulation(Controller(spec(retry="2m"))).run(30, 4_000)
    simulation.run(110, 15_000)
    simulation.run(10, 15_000, 20_000)
    assert simulation.controller.share == 0.1
    simulation.run(20, 15_000, 20_000)
    assert not simulation.controller.sheds


# -- the share ----------------------------------------------------------------------------------


def test_the_share_is_of_the_ids_alone_and_a_larger_one_contains_a_smaller() -> None:
    ids = [f"t{n:010}" for n in range(20_000)]
    tenth = {i for i in ids if is_kept(i, 0.1)}
    fifth = {i for i in ids if is_kept(i, 0.2)}
    assert 0.09 < len(tenth) / len(ids) < 0.11 and tenth < fifth
    assert tenth == {i for i in reversed(ids) if is_kept(i, 0.1)}
    assert all(is_kept(i, 1.0) for i in ids) and not any(is_kept(i, 0.0) for i in ids)


# -- a batch ------------------------------------------------------------------------------------


def record(number: int, amount: Any, **changes: Any) -> bytes:
    document = {"id": f"e{number}", "card": 'c"1', "t": NOW_MS - 900_000, "amount": amount}
    return json.dumps(document | {"unread": 1} | changes).encode()


def shed_of(raw: list[bytes], lag_ms: int = 1_000, **changes: Any) -> Any:
    positions = np.array([(3, 100 + n, NOW_MS - lag_ms) for n in range(len(raw))])
    shedding = Shedding(
        spec(**{"keep": 0, "sustained": 0} | changes), SCHEMA, "t", lambda: NOW_MS, lambda: 5
    )
    return shedding.of_records(raw, positions)


def test_low_priority_goes_and_the_rest_stays() -> None:
    shed = shed_of([record(0, 5), record(1, 50), b"no json", record(2, 19), record(3, "5")])
    assert shed.kept.tolist() == [1, 2, 4]  # what cannot be read becomes a dead letter
    first, second = (json.loads(value) for _, value in shed.records)
    assert [first["event_id"], second["event_id"]] == ["e0", "e2"]
    assert first["source"] == {"topic": "t", "partition": 3, "offset": 100}
    assert second["source"]["offset"] == 103
    assert (first["reason"], first["before"], first["kept"]) == ("lag", "features", 0)
    times = [first[f"{name}_time_ms"] for name in ("event", "ingest", "shed")]
    assert times == [NOW_MS - 900_000, NOW_MS - 1_000, NOW_MS]


def test_only_what_is_needed_is_checked() -> None:
    assert shed_of([record(0, 5, unread="text")]).kept.tolist() == []


def test_a_sensitive_key_is_hidden() -> None:
    ((key, value),) = shed_of([record(0, 5)]).records
    assert key == json.loads(value)["key"] and len(key) == 32


def test_nothing_is_shed_without_lag_or_low_priority() -> None:
    assert shed_of([record(0, 5)], lag_ms=20) is None
    assert shed_of([record(0, 500)]) is None
    assert shed_of([]) is None
    assert shed_of([b"", b"{"]) is None


def test_the_share_that_is_kept() -> None:
    raw = [record(n, 5) for n in range(2_000)]
    shed = shed_of(raw, keep=0.1)
    assert shed.kept.tolist() == [n for n in range(2_000) if is_kept(f"e{n}", 0.1)]
    assert shed_of(raw, keep=0.1).records == shed.records


def test_lag_by_the_events_own_time() -> None:
    event_time = {"clock": "event_time", "enter": "10m"}
    assert shed_of([record(0, 5)], lag_ms=0, lag=event_time) is not None
    assert shed_of([record(0, 5, t=NOW_MS)], lag_ms=10**9, lag=event_time) is None


def test_one_record_that_was_sent_late_is_no_overload() -> None:
    raw = [record(n, 5) for n in range(3)]
    positions = np.array([(0, n, NOW_MS - lag) for n, lag in enumerate((0, 0, 86_400_000))])
    shedding = Shedding(spec(sustained=0), SCHEMA, "t", lambda: NOW_MS, lambda: 5)
    assert shedding.of_records(raw, positions) is None


# -- the rate limit -----------------------------------------------------------------------------


def test_the_rate_limit_waits_for_what_was_taken() -> None:
    now_s, waited = [0.0], []

    def sleep(seconds: float) -> None:
        waited.append(seconds)
        now_s[0] += seconds

    limit = RateLimit(1_000, lambda: now_s[0], sleep)
    for _ in range(10):
        limit.wait(500)
    assert now_s[0] == pytest.approx(4.5)  # the first batch is on credit
    now_s[0] += 60
    limit.wait(500)
    limit.wait(50)
    assert len(waited) == 10 and now_s[0] == pytest.approx(65.0)
    assert limit_of(None) is None


def test_a_trickle_never_waits() -> None:
    now_s = [0.0]

    def clock() -> float:
        now_s[0] += 0.01
        return now_s[0]

    limit = RateLimit(1_000, clock, lambda _: pytest.fail("it waited"))
    for _ in range(1_000):
        limit.wait(10)


# -- the settings -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"lag": {"enter": "1s", "leave": "1s"}}, "must be below enter, 1s"),
        ({"queue": {"enter": 0.5, "leave": 0.6}}, "must be below enter, 0.5"),
        ({"keep": 1}, "less than 1"),
        ({"before": "sinks"}, "'features' or 'scoring'"),
    ],
)
def test_limits_that_cannot_be_meant_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        spec(**changes)


def test_a_formula_that_cannot_be_read_is_refused() -> None:
    (mistake,) = spec(low_priority="amout < 5").unfit(SCHEMA.event)
    assert mistake.path == ("low_priority",) and "amout" in mistake.message
    (mistake,) = spec(low_priority="amount").unfit(SCHEMA.event)
    assert "not a truth" in mistake.message


# -- from the end to the beginning --------------------------------------------------------------


def test_the_board_knows_the_worst_of_the_last_second() -> None:
    board = Board()
    assert board.worst(0) == (0, 0.0)
    board.tell(1, 1_000, 300, 0.2)
    board.tell(2, 1_500, 100, 0.9)
    assert board.worst(2_000) == (300, 0.9)
    board.tell(2, 2_100, 100, 0.1)
    assert board.worst(2_200) == (100, 0.1)
    assert board.worst(9_000) == (0, 0.0)
    assert board_of("a") is board_of("a") is not board_of("b")


def test_lag_at_the_end_counts_at_the_beginning() -> None:
    raw = [record(0, 5)]
    positions = np.array([(0, 0, NOW_MS)])
    shedding = Shedding(spec(keep=0, sustained=0), SCHEMA, "t", lambda: NOW_MS, lambda: 5)
    assert shedding.of_records(raw, positions, later_ms=100) is None
    shed = shedding.of_records(raw, positions, later_ms=900)
    assert shed is not None and shed.kept.tolist() == [] and shedding.lag_ms == 900
