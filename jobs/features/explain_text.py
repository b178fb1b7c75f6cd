"""An explained prediction, as tables and as JSON."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from rich.console import RenderableType
from rich.table import Table

from jobs.features.explain import Entry, Explained, Explanation

_IDS_SHOWN = 5
_VERDICTS = {True: "[green]equal[/]", False: "[red]differs[/]", None: "not recomputed"}


def as_document(found: Explanation) -> dict[str, Any]:
    """The explanation for a program."""
    return asdict(found) | {"is_equal": found.is_equal}


def renderables(found: Explanation, *, whole: bool) -> Iterator[RenderableType]:
    """The explanation for a reader; ``whole`` lists every entry of every window."""
    late = "; its prediction says late" if found.late else ""
    at = _moment(found.time_ms)
    yield f"event {found.event_id}, {at}, record {found.partition}/{found.offset}{late}"
    yield _overview(found)
    if whole:
        for feature in found.features:
            yield feature.feature.meaning
            if feature.entries:
                yield _entries(feature)


def _overview(found: Explanation) -> Table:
    table = Table()
    for heading in ("feature", "after", "until"):
        table.add_column(heading)
    for heading in ("entries", "recomputed", "predicted"):
        table.add_column(heading, justify="right")
    table.add_column("")
    table.add_column("newest entries", overflow="fold")
    for f in found.features:
        is_window = f.after_ms is not None and f.until_ms is not None
        newest = ", ".join(e.event_id for e in f.entries[: -_IDS_SHOWN - 1 : -1])
        table.add_row(
            f.feature.name,
            _moment(f.after_ms) if f.after_ms is not None else "",
            _moment(f.until_ms) if f.until_ms is not None else "",
            str(len(f.entries)) if is_window else "",
            _number(f.recomputed),
            _number(f.predicted),
            _VERDICTS[f.is_equal],
            newest if is_window else f.feature.reads,
        )
    return table


def _entries(feature: Explained) -> Table:
    table = Table("event", "time")
    for heading in ("value", "partition", "offset"):
        table.add_column(heading, justify="right")
    for e in feature.entries:
        table.add_row(e.event_id, _moment(e.time_ms), _values(e), str(e.partition), str(e.offset))
    return table


def _values(entry: Entry) -> str:
    return ", ".join(map(repr, entry.values))


def _moment(time_ms: int) -> str:
    moment = datetime.fromtimestamp(time_ms / 1_000, UTC)
    return f"{moment:%Y-%m-%d %H:%M:%S}.{time_ms % 1_000:03d}"


def _number(value: float | None) -> str:
    return "missing" if value is None else f"{value:.12g}"
