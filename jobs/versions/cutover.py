"""Moves readers from one version's predictions to another's."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

from jobs.settings import Settings
from jobs.versions.control import Control, Generation, Generations, followed_by
from jobs.versions.naming import control_topic, topic_of, versioned
from jobs.versions.overlap import Limits, Looker, Overlap, Progress


@dataclass(frozen=True, slots=True)
class Cutover:
    """What became of it.

    Attributes:
        old: The version that readers followed.
        new: The version they were to follow.
        seen: What the two made of the same inputs.
        objections: Why readers should stay; none if they could move.
        is_done: Whether they were told to move.
    """

    old: str
    new: str
    seen: Overlap
    objections: list[str]
    is_done: bool


def previous(generations: Generations) -> str | None:
    """The version before the current one; none before any cutover."""
    return generations[-2].version if len(generations) > 1 else None


def cut_over(
    settings: Settings,
    control: Control,
    options: Mapping[str, str],
    to: str,
    *,
    limits: Limits,
    most: int,
    wait_s: float,
    force: bool,
    progress: Progress,
) -> Cutover:
    """Compare two versions and let readers follow the other one.

    Both jobs run on: what readers get of an input depends on where the input lies. They move at
    the inputs that were the next ones when this began.

    Args:
        settings: The job's, as in its file.
        control: The control topic.
        options: Of librdkafka, with ``bootstrap.servers``.
        to: The version to follow.
        limits: What is asked for.
        most: Inputs compared, the newest of each partition.
        wait_s: How long both versions get to deal with what was there.
        force: Move in spite of objections.
        progress: Shown meanwhile.

    Raises:
        ControlError: a topic is missing, or the brokers do not answer.
    """
    generations = control.refresh()
    current = generations[-1]
    old, new = versioned(settings, current.version), versioned(settings, to)
    looker = Looker(options, old, new, most)
    seen = looker.look(limits.behind, wait_s, progress)
    objections = limits.objections(seen)
    is_done = not objections or force
    if is_done:
        followed = Generation(
            version=to,
            topic=topic_of(settings.topics.predictions, to),
            inputs=dict(looker.ends),
            begin=looker.outcomes[1].begin,
            switched_ms=time.time_ns() // 1_000_000,
        )
        control.write(followed_by(generations, looker.outcomes[0].read, followed))
    return Cutover(current.version, to, seen, objections, is_done)


def control_of(settings: Settings, options: Mapping[str, str]) -> Control:
    """A job's control topic."""
    return Control(options, control_topic(settings), settings.topics.predictions)


def lines(done: Cutover) -> list[str]:
    """What ``streamscore cutover`` prints."""
    seen = done.seen
    text = [
        f"{done.old} -> {done.new}: {seen.inputs:,} inputs, {seen.both:,} scored by both",
        f"at first behind: {seen.behind:,}; missing now: {seen.old_missing:,} of {done.old}, "
        f"{seen.new_missing:,} of {done.new}",
        f"scored by one alone: {seen.only_old:,} {done.old}, {seen.only_new:,} {done.new}; "
        f"fallbacks {seen.old_fallbacks:,} and {seen.new_fallbacks:,}",
        f"scores differ by {seen.mean_difference:.6f} on average, at most "
        f"{seen.largest_difference:.6f}; PSI {seen.psi:.3f}",
    ]
    text += [f"objection: {objection}" for objection in done.objections]
    text.append(f"readers follow {done.new if done.is_done else done.old}")
    return text
