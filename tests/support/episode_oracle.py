"""All episodes of one entity's scores, the slow way."""

from __future__ import annotations

from dataclasses import replace

from udfs.alerting.hysteresis import Episode, Rules, Score


def counted(scores: list[Score], rules: Rules) -> list[Episode]:
    """All episodes, the slow way: each score looks back at all that came before it."""
    ordered = sorted(scores, key=lambda s: s.place)
    episodes: list[Episode] = []
    is_on, since, barrier = False, 0, None
    for n, now in enumerate(ordered):
        pause = rules.close_after_ms
        if n and pause is not None and now.time_ms - ordered[n - 1].time_ms > pause:
            if is_on:
                last = ordered[n - 1].time_ms
                episodes[-1] = replace(episodes[-1], closed_ms=last + pause, closed_by="no_events")
            is_on, since = False, n
        window = ordered[max(since, n + 1 - rules.of_last) : n + 1]
        above = len([s for s in window if s.is_above])
        if not is_on and above >= rules.open_at and now.is_above:
            mine = [s for s in window if s.is_above and (barrier is None or s.time_ms > barrier)]
            if mine and now in mine:
                first = ordered.index(mine[0])
                episodes.append(made(ordered[first : n + 1], now.time_ms))
                is_on = True
        elif is_on:
            first = next(
                i
                for i, s in enumerate(ordered)
                if s.time_ms == episodes[-1].start_ms
                and s.is_above
                and i >= 0
                and starts(ordered, i, episodes[-1])
            )
            episodes[-1] = made(ordered[first : n + 1], episodes[-1].opened_ms)
            if above < rules.close_below:
                episodes[-1] = replace(episodes[-1], closed_ms=now.time_ms, closed_by="calm")
                is_on, barrier = False, now.time_ms
    return episodes


def starts(ordered: list[Score], i: int, episode: Episode) -> bool:
    """The first above of its time: no other episode has one of that time."""
    return not any(s.is_above and s.time_ms == episode.start_ms for s in ordered[:i])


def made(scores: list[Score], opened_ms: int) -> Episode:
    above = [s for s in scores if s.is_above]
    moved = [s for s in above if s.mover >= 0]
    most = max(moved, key=lambda s: abs(s.moved), default=None)
    peak = max(scores, key=lambda s: s.value)
    return Episode(
        above[0].time_ms,
        opened_ms,
        above[-1].time_ms,
        len(scores),
        peak,
        -1 if most is None else most.mover,
        0.0 if most is None else most.moved,
    )
