"""What a change of a job's settings does to its state, asked before the old job is stopped."""

from __future__ import annotations

from collections.abc import Iterator

from jobs.settings import Settings


class Incompatible(ValueError):
    """The new settings cannot go on from the old state; the text says which and why."""


def check(old: Settings, new: Settings) -> None:
    """Refuse settings that would lose or spoil the state of a running job.

    Raises:
        Incompatible: all that is wrong, one a line.
    """
    if found := list(_refused(old, new)):
        raise Incompatible("\n".join(found))


def _refused(old: Settings, new: Settings) -> Iterator[str]:
    if new.batch.buckets != old.batch.buckets:
        yield (
            f"batch.buckets is {new.batch.buckets}, the state has {old.batch.buckets}: they never "
            "change for a job's state"
        )
    if new.schema_.stages != old.schema_.stages:
        yield (
            f"the features' keys are {', '.join(new.schema_.stages)}, the state has "
            f"{', '.join(old.schema_.stages)}: start the job without its state"
        )
    for name in ("events", "labels"):
        was, now = getattr(old.topics, name), getattr(new.topics, name)
        if was != now:
            yield f"topics.{name} is {now}, the state has read {was} so far"
    if new.flink.delivery != old.flink.delivery == "exactly_once":
        yield "flink.delivery: a savepoint of exactly_once holds open transactions"
