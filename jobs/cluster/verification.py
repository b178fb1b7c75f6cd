"""Whether a job that was just started does what the one before it did."""

from __future__ import annotations

import time
from dataclasses import dataclass

from jobs.cluster.watching import COMPARABLE, PredictionWatch, Seen, now_ms, shift
from jobs.flink_rest import JobError
from jobs.running_job import TERMINAL_STATES, RunningJob

_POLL_S = 0.5
_QUIET_S = 10.0
"""How long a job with little or no input is watched."""


@dataclass(frozen=True)
class Limits:
    """What a new job must keep to.

    Attributes:
        wait_s: Longest wait for predictions and for the lag to fall.
        max_psi: Of the models' scores against those before, by population stability index.
        max_fallbacks: By how much the share of fallbacks may rise.
        lag_s: A lag of so many seconds of the rate before counts as none.
    """

    wait_s: float = 120.0
    max_psi: float = 0.25
    max_fallbacks: float = 0.05
    lag_s: float = 2.0


def verify(job: RunningJob, watch: PredictionWatch, stop_ms: int, limits: Limits) -> None:
    """Wait until predictions flow, the lag falls and the scores are like those before.

    Args:
        job: The new one.
        watch: Has watched since before the stop.
        stop_ms: When the old job was told to stop, epoch milliseconds.
        limits: What it must keep to.

    Raises:
        JobError: it does not; the text says what.
    """
    before = watch.seen(until_ms=stop_ms)
    stopped_ms = max((s.scored_ms for s in watch.seen()), default=stop_ms)
    start_s = time.monotonic()
    highest_lag = 0
    while True:
        _check_alive(job, watch)
        after, lag = watch.seen(since_ms=stopped_ms + 1), watch.lag()
        highest_lag = max(highest_lag, lag)
        allowed = max(_rate(before) * limits.lag_s, highest_lag / 2)
        waited_s = time.monotonic() - start_s
        is_enough = len(after) >= COMPARABLE or (after and waited_s > _QUIET_S)
        if is_enough and lag <= allowed:
            return _check_alike(before, after, limits)
        if not before and not after and lag == 0 and waited_s > _QUIET_S:
            return None
        if waited_s > limits.wait_s:
            what = f"the lag is {lag:,} and does not fall" if after else "no prediction came"
            raise JobError(f"after {limits.wait_s:.0f} s {what}")
        time.sleep(_POLL_S)


def wait_flowing(watch: PredictionWatch, wait_s: float) -> None:
    """Wait until there is a prediction that was made after this call, or until time is up."""
    called_ms, start_s = now_ms(), time.monotonic()
    while not watch.seen(since_ms=called_ms) and time.monotonic() - start_s < wait_s:
        time.sleep(_POLL_S)


def _check_alive(job: RunningJob, watch: PredictionWatch) -> None:
    state = job.state()
    if state in TERMINAL_STATES or job.restarts():
        raise JobError(f"it is {state} after a failure: {job.cause()}")
    if watch.failure:
        raise JobError(f"its predictions cannot be read: {watch.failure}")


def _rate(seen: list[Seen]) -> float:
    """Predictions a second."""
    if len(seen) < 2:
        return 0.0
    times = [s.scored_ms for s in seen]
    return 1_000 * len(seen) / max(1, max(times) - min(times))


def _check_alike(before: list[Seen], after: list[Seen], limits: Limits) -> None:
    psi = shift(before, after)
    if psi is not None and psi > limits.max_psi:
        raise JobError(f"the scores' population stability index is {psi:.2f}")
    rise = _fallbacks(after) - _fallbacks(before)
    if rise > limits.max_fallbacks:
        raise JobError(f"the share of fallbacks rose by {rise:.0%}")


def _fallbacks(seen: list[Seen]) -> float:
    return sum(s.is_fallback for s in seen) / len(seen) if seen else 0.0
