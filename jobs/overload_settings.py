"""What is wrong between ``overload`` and the rest of a job's settings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from udfs.definition.overload import OverloadSpec
from udfs.definition.types import Mistake


def overload_mistakes(sections: Mapping[str, Any]) -> Iterator[Mistake]:
    """The mistakes, as far as the sections that are given tell.

    Args:
        sections: Those that are right by themselves, by name, with ``overload``.
    """
    overload: OverloadSpec = sections["overload"]
    yield from _of_another_job(sections)
    if "event" in sections:
        for path, message in overload.unfit(sections["event"]):
            yield Mistake(("overload", *path), message)
    if "topics" in sections and sections["topics"].shed is None:
        yield Mistake(("topics", "shed"), "overload writes there what it sheds: name the topic")


def _of_another_job(sections: Mapping[str, Any]) -> Iterator[Mistake]:
    if "kafka" in sections and sections["kafka"].stop_at_end:
        message = "a job that stops at the end reads what is old: remove overload"
        yield Mistake(("overload",), message)
    if sections.get("rollup") is not None:
        message = "the events are windows, and one without some readings is another one: remove it"
        yield Mistake(("overload",), message)
    if sections.get("ranking") is not None:
        message = "each request has somebody who waits: limit gateway.in_flight, and remove it"
        yield Mistake(("overload",), message)
