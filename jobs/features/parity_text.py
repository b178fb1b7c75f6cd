"""The outcome of a comparison, as lines and as JSON."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from jobs.features.parity import SHOWN, Difference, Parity


def as_document(parity: Parity) -> dict[str, Any]:
    """The outcome for a program."""
    return asdict(parity) | {"differences": parity.differences, "is_equal": parity.is_equal}


def lines(parity: Parity) -> Iterator[str]:
    """The outcome for a reader."""
    yield (
        f"{parity.predictions:,} predictions, {parity.repeats:,} repeats of them left out; "
        f"{parity.unscored:,} accepted records have no prediction"
    )
    yield (
        f"compared {parity.values:,} values of {parity.compared:,} predictions, "
        f"{parity.late:,} of them late: {parity.differences:,} differences"
    )
    if parity.late_differences:
        yield (
            f"{parity.late_differences:,} of them are of late predictions, whose features are not "
            "promised to be exact; --without-late leaves them out"
        )
    if parity.without_event:
        yield f"{parity.without_event:,} predictions could not be compared: no event"
    yield from (f"note: {note}" for note in parity.notes)
    for name, count in parity.by_feature.items():
        yield f"  {name}: {count:,}"
    if parity.first:
        yield f"the first of them, at most {SHOWN}:"
    yield from map(_line, parity.first)


def _line(found: Difference) -> str:
    place = f"{found.partition}/{found.offset}"
    if not found.feature:
        return f"  {place}: {found.cause}"
    values = f"{_value(found.predicted)}, recomputed {_value(found.recomputed)}"
    return f"  {found.event_id} ({place}) {found.feature}: predicted {values}: {found.cause}"


def _value(value: float | None) -> str:
    return "missing" if value is None else f"{value!r}"
