"""An entity's timeline as bytes, for Flink's state; a change raises ``VERSION``."""

from __future__ import annotations

from struct import Struct

from udfs.alerting.hysteresis import (
    ClosedBy,
    Episode,
    Hysteresis,
    Rules,
    pack_score,
    read_score,
)
from udfs.alerting.timeline import Notice, State, Timeline

VERSION = 1
_NONE = -(2**63)
_HEADER = Struct("<BBIIIIqqqq")
"""Version, flags, scores, settled, base's window, told; base's last, its barrier, heard, silent."""
_EPISODE = Struct("<qqqQhdqB")
_TOLD = Struct("<BI")
_EXPIRED, _BASE_IS_OPEN, _HEAD_IS_OPEN = 1, 2, 4
_STATES: tuple[State, ...] = ("open", "closed", "withdrawn")
_CLOSED_BY: tuple[ClosedBy | None, ...] = (None, "calm", "no_events")


class TimelineFormatError(ValueError):
    """The bytes are none of this version: the state was written by another release."""


def pack(timeline: Timeline) -> bytes:
    """A timeline as bytes; the head is counted again when it is read."""
    base, told = timeline.base, timeline.told
    flags = _EXPIRED * timeline.expired | _HEAD_IS_OPEN * timeline.is_open
    flags |= _BASE_IS_OPEN * (base.episode is not None)
    counts = len(timeline.scores), timeline.settled, len(base.window), len(told)
    times = base.last_ms, base.barrier_ms, timeline.heard_ms, timeline.silent_ms
    parts = [_HEADER.pack(VERSION, flags, *counts, *(_NONE if t is None else t for t in times))]
    parts += timeline.packed
    if base.episode is not None:
        parts.append(_episode(base.episode))
    for notice in told.values():
        parts.append(_TOLD.pack(_STATES.index(notice.state), notice.revision))
        parts.append(_episode(notice.episode))
    return b"".join(parts)


def unpack(packed: bytes, rules: Rules) -> Timeline:
    """The timeline of these bytes.

    Raises:
        TimelineFormatError: It is of another version.
    """
    if not packed or packed[0] != VERSION:
        version = packed[0] if packed else "none"
        raise TimelineFormatError(
            f"episodes in the state have version {version}, this release reads {VERSION}: start "
            "without the old state, or with the release that wrote it"
        )
    _, flags, n, settled, window, told, *times = _HEADER.unpack_from(packed)
    last_ms, barrier_ms, heard_ms, silent_ms = (None if t == _NONE else t for t in times)
    at = _HEADER.size
    scores, blobs = [], []
    for _ in range(n):
        score, end = read_score(packed, at)
        scores.append(score)
        blobs.append(packed[at:end])
        at = end
    base = Hysteresis(scores[settled - window : settled], last_ms, barrier_ms)
    if flags & _BASE_IS_OPEN:
        base.episode, at = _read_episode(packed, at)
    timeline = Timeline(scores, blobs, settled, base, expired=bool(flags & _EXPIRED))
    timeline.heard_ms, timeline.silent_ms = heard_ms, silent_ms
    for _ in range(told):
        state, revision = _TOLD.unpack_from(packed, at)
        episode, at = _read_episode(packed, at + _TOLD.size)
        timeline.told[episode.start_ms] = Notice(episode, _STATES[state], revision)
    for _ in timeline.replay(rules):
        pass
    return timeline


def is_open(packed: bytes) -> bool:
    """Whether packed bytes are of an entity with an open episode."""
    return bool(packed[1] & _HEAD_IS_OPEN)


def _episode(e: Episode) -> bytes:
    closed_ms = _NONE if e.closed_ms is None else e.closed_ms
    by = _CLOSED_BY.index(e.closed_by)
    times = e.start_ms, e.opened_ms, e.last_above_ms
    head = _EPISODE.pack(*times, e.events, e.mover, e.moved, closed_ms, by)
    return head + pack_score(e.peak)


def _read_episode(packed: bytes, at: int) -> tuple[Episode, int]:
    start, opened, last, events, mover, moved, closed_ms, by = _EPISODE.unpack_from(packed, at)
    peak, at = read_score(packed, at + _EPISODE.size)
    closed = None if closed_ms == _NONE else closed_ms
    return Episode(start, opened, last, events, peak, mover, moved, closed, _CLOSED_BY[by]), at
