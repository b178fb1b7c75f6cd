"""Measured memory of features, as tables and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.table import Table

from jobs.features.size import Journal, Size
from udfs.definition.types import format_duration


def as_document(sizes: Sequence[Size], journals: Sequence[Journal], keys: int) -> dict[str, Any]:
    """The figures for a program; totals are for ``keys`` keys of each stage."""
    return {
        "keys": keys,
        "histories": [asdict(s) for s in sizes],
        "journals": [asdict(j) | {"most_bytes": j.most_bytes} for j in journals],
        "packed_bytes": round(sum(s.packed_bytes * keys / s.keys for s in sizes)),
        "unpacked_bytes": round(sum(s.unpacked_bytes * keys / s.keys for s in sizes)),
    }


def size_table(sizes: Sequence[Size], keys: int, cached_entries: int) -> Table:
    """Per stage and stream, and in all.

    Args:
        sizes: What was measured.
        keys: Of each stage, for the totals.
        cached_entries: Most entries of a stage and stream that stay unpacked, in all buckets.
    """
    table = Table(title=f"Histories of {keys:,} keys of each stage")
    for heading in ("stage", "stream", "kept for"):
        table.add_column(heading)
    for heading in (
        "events per key",
        "packed per event",
        "packed per key",
        "formula per key",
        "Flink's state",
        "unpacked per event",
        "unpacked per key",
        "operators' memory",
    ):
        table.add_column(heading, justify="right")
    for s in sizes:
        table.add_row(*_cells(s, keys, cached_entries))
    packed = sum(s.packed_bytes * keys / s.keys for s in sizes)
    unpacked = sum(_unpacked(s, keys, cached_entries) for s in sizes)
    table.add_section()
    table.add_row("total", *[""] * 6, bytes_text(packed), "", "", bytes_text(unpacked))
    table.caption = (
        "Formula: 24 + events kept x (8, 16 for id and content if looked for, 8 per series); "
        "windows with panes keep less. "
        "Not counted: names of keys, and what Flink adds to an entry. Unpacked: with blocks and "
        f"room to grow; at most flink.cached_entries, {cached_entries:,} in all buckets."
    )
    return table


def _cells(s: Size, keys: int, cached_entries: int) -> list[str]:
    return [
        s.stage,
        s.stream,
        format_duration(s.horizon_ms),
        f"{s.entries / s.keys:,.1f}",
        f"{s.packed_bytes / s.entries:,.1f} B",
        bytes_text(s.packed_bytes / s.keys),
        bytes_text(s.formula_bytes / s.keys),
        bytes_text(s.packed_bytes * keys / s.keys),
        f"{s.unpacked_bytes / s.entries:,.1f} B",
        bytes_text(s.unpacked_bytes / s.keys),
        bytes_text(_unpacked(s, keys, cached_entries)),
    ]


def _unpacked(s: Size, keys: int, cached_entries: int) -> float:
    entries = s.entries * keys / s.keys
    return s.unpacked_bytes / s.entries * min(entries, cached_entries)


def journal_table(journals: Sequence[Journal]) -> Table:
    """Per stage."""
    table = Table("stage", title="Journals, in Flink's state")
    for heading in ("per event", "events per bucket, at most", "buckets", "at most"):
        table.add_column(heading, justify="right")
    for j in journals:
        most = bytes_text(j.most_bytes)
        table.add_row(
            j.stage, f"{j.event_bytes:,.1f} B", f"{j.limit_events:,}", str(j.buckets), most
        )
    return table


def bytes_text(count: float) -> str:
    """Bytes with a decimal unit: 1,624 B, 132.0 MB."""
    for unit in ("B", "kB", "MB"):
        if count < 10_000:
            return f"{count:,.0f} {unit}" if unit == "B" else f"{count:,.1f} {unit}"
        count /= 1_000
    return f"{count:,.1f} GB"
