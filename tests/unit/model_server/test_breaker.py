"""The circuit breaker, against a model of it and by example."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from model_server.breaker import BreakerOptions, BreakerState, CircuitBreaker, Permit
from model_server.errors import CircuitOpen

OPTIONS = BreakerOptions(failure_threshold=3, open_ms=1_000.0, trial_calls=2)


class BreakerMachine(RuleBasedStateMachine):
    """Random calls, outcomes in any order, and time; stated as what may never happen."""

    permits = Bundle("permits")

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0
        self.breaker = CircuitBreaker(OPTIONS, clock=lambda: self.now_s)
        self.failures_in_a_row = 0
        self.opened_at_s = 0.0
        self.trials: list[Permit] = []
        self.was = BreakerState.CLOSED

    @rule(step_ms=st.integers(0, 1_500))
    def time_passes(self, step_ms: int) -> None:
        self.now_s += step_ms / 1_000.0

    @rule(target=permits)
    def acquire(self) -> Permit | None:
        before = self.breaker.state
        try:
            permit = self.breaker.acquire()
        except CircuitOpen:
            assert before is not BreakerState.CLOSED
            if before is BreakerState.HALF_OPEN:
                assert len(self.trials) == OPTIONS.trial_calls
            return None
        assert before is not BreakerState.OPEN
        if before is BreakerState.HALF_OPEN:
            self.trials.append(permit)
            assert len(self.trials) <= OPTIONS.trial_calls
        return permit

    @rule(permit=permits)
    def succeed(self, permit: Permit | None) -> None:
        if permit is not None:
            self.settle(permit, permit.succeed, failed=False)

    @rule(permit=permits)
    def fail(self, permit: Permit | None) -> None:
        if permit is not None:
            self.settle(permit, permit.fail, failed=True)

    @rule(permit=permits)
    def abandon(self, permit: Permit | None) -> None:
        if permit is not None:
            before = self.breaker.state
            counted = not permit._settled
            permit.abandon()
            assert self.breaker.state is before
            if counted and permit in self.trials:
                self.trials.remove(permit)

    def settle(self, permit: Permit, outcome: object, *, failed: bool) -> None:
        before = self.breaker.state
        live = not permit._settled and permit._period == self.breaker._period
        outcome()  # type: ignore[operator]
        after = self.breaker.state
        if not live:
            assert after is before  # stale or second outcomes change nothing
        elif failed:
            self.failures_in_a_row += 1
            reached = self.failures_in_a_row >= OPTIONS.failure_threshold
            half_open = before is BreakerState.HALF_OPEN
            assert (after is BreakerState.OPEN) == (reached or half_open)
        else:
            self.failures_in_a_row = 0
            assert after in (before, BreakerState.CLOSED)

    @invariant()
    def transitions_are_the_drawn_ones(self) -> None:
        now = self.breaker.state
        allowed = {
            (BreakerState.CLOSED, BreakerState.OPEN),
            (BreakerState.OPEN, BreakerState.HALF_OPEN),
            (BreakerState.HALF_OPEN, BreakerState.OPEN),
            (BreakerState.HALF_OPEN, BreakerState.CLOSED),
        }
        assert now is self.was or (self.was, now) in allowed
        if now is not self.was:
            self.failures_in_a_row = 0
            self.trials.clear()
        if now is BreakerState.OPEN and self.was is not BreakerState.OPEN:
            self.opened_at_s = self.now_s
        if now is BreakerState.OPEN:  # and never for longer than it says
            assert (self.now_s - self.opened_at_s) * 1_000.0 < OPTIONS.open_ms
        self.was = now


TestBreakerMachine = BreakerMachine.TestCase


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def opened(clock: Clock, options: BreakerOptions = OPTIONS) -> CircuitBreaker:
    breaker = CircuitBreaker(options, clock=clock)
    for _ in range(options.failure_threshold):
        breaker.acquire().fail()
    assert breaker.state is BreakerState.OPEN
    return breaker


def test_success_in_between_starts_the_count_again() -> None:
    breaker = CircuitBreaker(OPTIONS, clock=Clock())
    for outcome in ("fail", "fail", "succeed", "fail", "fail"):
        getattr(breaker.acquire(), outcome)()
    assert breaker.state is BreakerState.CLOSED


def test_open_refuses_until_its_time_is_over() -> None:
    clock = Clock()
    breaker = opened(clock)
    clock.now_s = 0.999
    with pytest.raises(CircuitOpen, match="another 1 ms"):
        breaker.acquire()
    clock.now_s = 1.0
    breaker.acquire()


def test_half_open_takes_only_its_trial_calls_and_closes_when_all_succeed() -> None:
    clock = Clock()
    breaker = opened(clock)
    clock.now_s = 1.0
    first, second = breaker.acquire(), breaker.acquire()
    with pytest.raises(CircuitOpen, match="in flight"):
        breaker.acquire()
    first.succeed()
    assert breaker.state is BreakerState.HALF_OPEN
    second.succeed()
    assert breaker.state is BreakerState.CLOSED


def test_failed_trial_opens_for_a_whole_pause() -> None:
    clock = Clock()
    breaker = opened(clock)
    clock.now_s = 1.5
    breaker.acquire().fail()
    clock.now_s = 2.4
    assert breaker.state is BreakerState.OPEN
    clock.now_s = 2.5
    assert breaker.state is BreakerState.HALF_OPEN


def test_abandoned_trial_gives_its_place_back() -> None:
    clock = Clock()
    breaker = opened(clock)
    clock.now_s = 1.0
    for _ in range(5):
        breaker.acquire().abandon()
    breaker.acquire()


def test_late_outcome_of_an_earlier_period_is_ignored() -> None:
    clock = Clock()
    breaker = CircuitBreaker(OPTIONS, clock=clock)
    late = [breaker.acquire() for _ in range(10)]
    for permit in late[:3]:
        permit.fail()
    clock.now_s = 1.0
    trial = breaker.acquire()
    late[3].fail()
    late[4].succeed()
    assert breaker.state is BreakerState.HALF_OPEN
    trial.succeed()
    breaker.acquire().succeed()
    assert breaker.state is BreakerState.CLOSED


def test_states_are_gauge_numbers() -> None:
    assert [int(BreakerState[name]) for name in ("CLOSED", "HALF_OPEN", "OPEN")] == [0, 1, 2]


@pytest.mark.parametrize(
    "changes", [{"failure_threshold": 0}, {"open_ms": 0.0}, {"trial_calls": 0}]
)
def test_wrong_settings_are_refused(changes: dict[str, float]) -> None:
    with pytest.raises(ValueError):
        BreakerOptions(**changes)  # type: ignore[arg-type]
