"""Which keys go where, what a rollout file may say, and what ends a canary."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from udfs.scoring.rollout import Address, Guard, Limits, Rollout, RolloutError, population_stability

KEYS = [f"card{n}" for n in range(5_000)]
LIMITS = Limits(error_rate=0.05, latency_ratio=2.0, psi=0.25, min_rows=200)


def rollout(percent: float, **changes: Any) -> Rollout:
    return Rollout(**{"id": "r1", "canary": Address(version=4, percent=percent)} | changes)


@given(st.floats(0, 100), st.floats(0, 100), st.text(min_size=1))
def test_raising_the_share_moves_no_key_back(one: float, other: float, identity: str) -> None:
    low, high = sorted((one, other))
    few = rollout(low, id=identity).in_canary(KEYS[:300])
    many = rollout(high, id=identity).in_canary(KEYS[:300])
    assert not (few & ~many).any()


@pytest.mark.parametrize("percent", [0, 1, 10, 50, 100])
def test_the_share_is_what_was_asked(percent: float) -> None:
    assert abs(rollout(percent).in_canary(KEYS).mean() - percent / 100) < 0.02


def test_each_rollout_takes_other_keys() -> None:
    first, second = rollout(50).in_canary(KEYS), rollout(50, id="r2").in_canary(KEYS)
    assert 0.4 < (first == second).mean() < 0.6


def test_promoted_is_everybody_and_aborted_nobody() -> None:
    assert rollout(1, state="promoted").in_canary(KEYS).all()
    assert not rollout(100).aborted("bad").in_canary(KEYS).any()
    assert not rollout(100).in_shadow(KEYS).any()


def test_file_survives_the_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "rollout.json"
    assert Rollout.read(path) is None
    written = rollout(10, shadow=Address("h:1", None, 100.0), limits=LIMITS, reason="why")
    written.write(path)
    assert Rollout.read(path) == written
    assert [entry.name for entry in tmp_path.iterdir()] == ["rollout.json"]


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ([], "object"),
        ({"id": ""}, "id"),
        ({"id": "x"}, "canary or a shadow"),
        ({"id": "x", "state": "done"}, "state"),
        ({"id": "x", "more": 1}, "unknown: more"),
        ({"id": "x", "canary": 1}, "canary"),
        ({"id": "x", "canary": {}}, "name a server or a version"),
        ({"id": "x", "canary": {"version": 0}}, "version"),
        ({"id": "x", "canary": {"server": "nowhere"}}, "host:port"),
        ({"id": "x", "canary": {"version": 1, "percent": 101}}, "percent"),
        ({"id": "x", "canary": {"version": 1}, "limits": {"psi": -1}}, "psi"),
        ({"id": "x", "canary": {"version": 1}, "limits": {"x": 1}}, "limits"),
    ],
)
def test_wrong_document_is_refused(document: Any, words: str) -> None:
    with pytest.raises(RolloutError, match=words):
        Rollout.parse(document)


def test_wrong_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "r").write_text("{")
    with pytest.raises(RolloutError, match="cannot be read"):
        Rollout.read(tmp_path / "r")


class Calls:
    """Calls of 20 rows to both sides."""

    def __init__(self) -> None:
        self.guard = Guard(LIMITS)
        self.random = np.random.default_rng(1)

    def run(self, calls: int, *, fail: float = 0, slower: float = 1, shift: float = 0) -> Any:
        for n in range(calls):
            self.guard.observe("stable", 20, self.random.beta(1, 9, 20), 10.0)
            failed = n < fail * calls
            scores = None if failed else np.clip(self.random.beta(1, 9, 20) + shift, 0, 1)
            reason = self.guard.observe("canary", 20, scores, 10.0 * slower)
            if reason is not None:
                return reason
        return None


def test_equal_sides_go_on() -> None:
    assert Calls().run(500) is None


def test_nothing_is_judged_before_there_are_enough_rows() -> None:
    assert Calls().run(9, fail=1) is None


@pytest.mark.parametrize(
    ("fault", "words"),
    [({"fail": 0.5}, "got no answer"), ({"slower": 5}, "ms at p90"), ({"shift": 0.3}, "stability")],
)
def test_what_goes_past_a_limit_ends_the_canary(fault: Any, words: str) -> None:
    assert words in Calls().run(200, **fault)


def test_few_milliseconds_more_are_no_fault() -> None:
    guard = Guard(LIMITS)
    for _ in range(100):
        guard.observe("stable", 20, np.zeros(20), 1.0)
        assert guard.observe("canary", 20, np.zeros(20), 4.0) is None


def test_population_stability() -> None:
    same = np.array([10, 20, 70])
    assert population_stability(same, same * 3) == 0
    # (0.5 - 0.9) ln(0.5 / 0.9) + (0.5 - 0.1) ln(0.5 / 0.1)
    assert population_stability(np.array([90, 10]), np.array([50, 50])) == pytest.approx(
        0.8789, 1e-3
    )
