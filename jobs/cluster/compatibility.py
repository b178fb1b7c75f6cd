"""What a change of a job's settings does to its state, asked before the old job is stopped."""

from __future__ import annotations

from collections.abc import Iterator

from jobs.features.changes import compare, needs_drain
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
    for change in compare(old, new):
        if change.effect == "refused":
            what = change.feature or change.kind
            yield f"{what}: {change.reason}"
    if needs_drain(old, new):
        yield (
            f"the last key would be {new.schema_.stages[-1]!r}: the batches in flight lie with "
            f"{old.schema_.stages[-1]!r}; stop the job with drain and start it anew"
        )
    for name in ("events", "labels"):
        was, now = getattr(old.topics, name), getattr(new.topics, name)
        if was != now:
            yield f"topics.{name} is {now}, the state has read {was} so far"
    if new.flink.delivery != old.flink.delivery == "exactly_once":
        yield "flink.delivery: a savepoint of exactly_once holds open transactions"
