"""Episodes against a naive recount of all scores in order of event time."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.episode_oracle import counted
from udfs.alerting.hysteresis import Episode, Rules, Score
from udfs.alerting.packing import TimelineFormatError, is_open, pack, unpack
from udfs.alerting.timeline import Limits, Notice, Timeline

LATENESS_MS = 40
SHOWN = 4


def score(
    time_ms: int, value: float, offset: int = 0, mover: int = -1, moved: float = 0.0
) -> Score:
    return Score(time_ms, 0, offset, value, 0.5, mover, moved, b"[1]" if value > 0.5 else b"")


@st.composite
def rules_(draw: st.DrawFn) -> Rules:
    of_last = draw(st.integers(1, 5))
    open_at = draw(st.integers(1, of_last))
    return Rules(
        open_at,
        of_last,
        draw(st.integers(1, open_at)),
        draw(st.sampled_from([None, 15, 30])),
    )


@st.composite
def arrivals(draw: st.DrawFn) -> list[Score]:
    """Scores in an order of arrival, none later than the lateness."""
    steps = draw(st.lists(st.sampled_from([0, 1, 5, 10, 10, 10, 20, 50]), max_size=40))
    found, time_ms = [], 0
    for n, step in enumerate(steps):
        time_ms += step
        value = draw(st.sampled_from([0.1, 0.2, 0.6, 0.9]))
        mover = draw(st.integers(-1, 2))
        found.append(score(time_ms, value, n, mover, draw(st.sampled_from([-3.0, 1.0, 2.0]))))
    delays = draw(st.lists(st.integers(0, LATENESS_MS), min_size=len(found), max_size=len(found)))
    return [
        s for _, s in sorted(zip(delays, found, strict=True), key=lambda d: d[1].time_ms + d[0])
    ]


class Told:
    """What a reader of the alerts holds: the highest revision of each episode."""

    def __init__(self) -> None:
        self.now: dict[int, Notice] = {}

    def take(self, notices: list[Notice] | None) -> None:
        assert notices is not None, "no score came too late"
        for notice in notices:
            start = notice.episode.start_ms
            was = self.now.get(start)
            assert notice.revision == (1 if was is None else was.revision + 1)
            assert was is not None or notice.state == "open", "an episode is opened first"
            self.now[start] = notice

    @property
    def episodes(self) -> list[Any]:
        found = [n for n in self.now.values() if n.state != "withdrawn"]
        return sorted((n.episode.start_ms, n.state, closed(n.episode)) for n in found)


def closed(episode: Episode) -> Any:
    """What the last record of an episode says; of an open one only that it is."""
    return None if episode.closed_ms is None else episode


def expected(scores: list[Score], rules: Rules) -> list[Any]:
    return [
        (e.start_ms, "open" if e.closed_ms is None else "closed", closed(e))
        for e in counted(scores, rules)
    ]


LIMITS = Limits(LATENESS_MS, SHOWN)


@given(rules_(), arrivals(), st.data())
def test_the_last_revisions_are_what_a_recount_in_order_gives(
    rules: Rules, scores: list[Score], data: st.DataObject
) -> None:
    timeline, told = Timeline(), Told()
    for s in scores:
        if data.draw(st.booleans()):
            timeline = unpack(pack(timeline), rules)  # a restart
        if data.draw(st.integers(0, 5)) == 0 and rules.close_after_ms:
            told.take(timeline.expire(rules))  # the clock says that nothing came; it may be wrong
        told.take(timeline.add(rules, LIMITS, s))
        if data.draw(st.integers(0, 9)) == 0:
            assert timeline.add(rules, LIMITS, s) == []  # it came twice
    if timeline.expired:  # as if nothing had been said too early
        timeline.expired = False
        told.take(timeline._recount(rules))
    assert told.episodes == expected(scores, rules)
    assert timeline.shown(LIMITS) == sorted(scores, key=lambda s: s.place)[-SHOWN:]


@given(rules_(), arrivals())
def test_packed_it_is_the_same(rules: Rules, scores: list[Score]) -> None:
    timeline = Timeline()
    for s in scores:
        timeline.add(rules, LIMITS, s)
    again = unpack(pack(timeline), rules)
    assert again == timeline
    assert is_open(pack(timeline)) == timeline.is_open


@given(rules_(), arrivals())
def test_in_order_each_episode_is_told_twice_at_most(rules: Rules, scores: list[Score]) -> None:
    timeline = Timeline()
    notices: list[Notice] = []
    for s in sorted(scores, key=lambda s: s.place):
        notices += timeline.add(rules, LIMITS, s) or []
    episodes = counted(scores, rules)
    closings = sum(e.closed_ms is not None for e in episodes)
    assert [n.revision for n in notices if n.state == "open"] == [1] * len(episodes)
    assert [n.revision for n in notices if n.state == "closed"] == [2] * closings
    assert len(notices) == len(episodes) + closings


@given(rules_(), st.lists(st.integers(0, 30), max_size=60))
def test_what_is_kept_is_bounded(rules: Rules, values: list[int]) -> None:
    timeline = Timeline()
    for n, value in enumerate(values):
        timeline.add(rules, LIMITS, score(10 * n, value / 30))
        assert len(timeline.scores) <= max(rules.of_last, SHOWN) + LATENESS_MS // 10 + 1
        assert len(timeline.told) <= LATENESS_MS // 10 + 2


def test_two_of_three() -> None:
    rules, timeline = Rules(2, 3, 1, None), Timeline()
    values = [0.1, 0.9, 0.1, 0.8, 0.1, 0.1, 0.1]
    told = [timeline.add(rules, LIMITS, score(10 * n, v)) for n, v in enumerate(values)]
    (opened,) = told[3] or []
    assert (opened.state, opened.episode.start_ms, opened.episode.opened_ms) == ("open", 10, 30)
    (ended,) = told[6] or []
    assert (ended.state, ended.episode.closed_ms, ended.episode.closed_by) == ("closed", 60, "calm")
    assert (ended.episode.last_above_ms, ended.episode.events) == (30, 6)
    assert ended.episode.peak.value == 0.9


def test_a_score_later_than_the_lateness_is_left_out() -> None:
    rules, timeline = Rules(1, 1, 1, None), Timeline()
    for time_ms in (0, 100, 200):
        timeline.add(rules, LIMITS, score(time_ms, 0.1))
    assert timeline.add(rules, LIMITS, score(50, 0.9)) is None


def test_a_late_calm_score_withdraws_an_episode() -> None:
    rules, timeline = Rules(2, 2, 1, None), Timeline()
    timeline.add(rules, LIMITS, score(0, 0.9))
    (opened,) = timeline.add(rules, LIMITS, score(20, 0.9)) or []
    (gone,) = timeline.add(rules, LIMITS, score(10, 0.1)) or []
    assert (opened.state, gone.state, gone.revision) == ("open", "withdrawn", 2)
    assert opened.episode.start_ms == gone.episode.start_ms == 0


def test_another_version_is_refused() -> None:
    packed = pack(Timeline())
    with pytest.raises(TimelineFormatError, match="version 9"):
        unpack(bytes([9]) + packed[1:], Rules(1, 1, 1))
