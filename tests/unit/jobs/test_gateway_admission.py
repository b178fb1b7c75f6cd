"""How many requests a gateway lets wait for the job."""

from __future__ import annotations

from jobs.gateway.admission import Admission


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def play(capacity_per_s: float, rate_per_s: float, seconds: float) -> tuple[list[int], list[float]]:
    """A job that answers one after the other; how many were let in each second, and the times."""
    clock = Clock()
    admission = Admission(0.18, 512, clock)
    began_s, free_s = clock.now_s, clock.now_s
    due: list[tuple[float, float]] = []
    admitted, times = [0] * int(seconds), []
    for n in range(int(rate_per_s * seconds)):
        now_s = began_s + n / rate_per_s
        while due and due[0][0] <= now_s:
            clock.now_s, came_s = due.pop(0)
            admission.leave(clock.now_s - came_s)
            times.append(clock.now_s - came_s)
        clock.now_s = now_s
        if admission.enter():
            admitted[int(now_s - began_s)] += 1
            free_s = max(free_s, now_s)
            if free_s < now_s + 0.18:  # else it has expired and is no work
                free_s += 1 / capacity_per_s
            due.append((min(free_s, now_s + 0.18), now_s))
            due.sort()
    return admitted, times


def test_a_job_that_keeps_up_gets_every_request() -> None:
    admitted, times = play(capacity_per_s=400, rate_per_s=200, seconds=10)
    assert sum(admitted) == 2_000 and max(times) < 0.05


def test_a_job_that_is_asked_too_much_gets_what_it_can_do_in_time() -> None:
    admitted, times = play(capacity_per_s=100, rate_per_s=400, seconds=20)
    assert all(85 <= count <= 110 for count in admitted[5:]), admitted
    settled = times[len(times) // 2 :]
    assert max(settled) < 0.17


def test_the_limit_grows_again_when_the_job_is_quick_again() -> None:
    clock = Clock()
    admission = Admission(0.18, 64, clock)
    for _ in range(20):
        assert admission.enter()
        clock.now_s += 0.2
        admission.leave(0.2)
    assert admission.limit == 8
    for _ in range(20):
        while admission.enter():
            pass
        for _ in range(admission.limit):
            clock.now_s += 0.2 / admission.limit
            admission.leave(0.01)
    assert admission.limit == 64


def test_a_moments_standstill_cuts_nothing() -> None:
    clock = Clock()
    admission = Admission(0.18, 512, clock)
    for _ in range(40):
        assert admission.enter()
    for n in range(40):
        clock.now_s += 0.18 / 39
        admission.leave(0.18 if n < 30 else 0.02)
    assert admission.limit == 512
