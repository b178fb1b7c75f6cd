"""The catalogue of a job's features as a document: Markdown, or one HTML file without scripts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape

from jobs.features.catalogue import Described, describe
from jobs.settings import Settings
from udfs.definition.schema import Schema
from udfs.definition.types import format_duration
from udfs.features.keyed import KeyedStage

Table = tuple[Sequence[str], Sequence[Sequence[str]]]
"""Headings and rows."""

_STYLE = """
:root { color-scheme: light dark; --page: #ffffff; --ink: #1b1f24; --muted: #59636e;
  --grid: #e3e6ea; }
@media (prefers-color-scheme: dark) { :root { --page: #14171a; --ink: #e7eaee; --muted: #9ba5b0;
  --grid: #2b3137; } }
body { margin: 0 auto; padding: 24px 16px 48px; max-width: 1100px; background: var(--page);
  color: var(--ink); font: 15px/1.45 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 24px; margin: 0; }
h2 { font-size: 16px; margin: 36px 0 2px; }
p { margin: 0; color: var(--muted); font-size: 13px; }
.scroll { overflow-x: auto; margin-top: 10px; }
table { border-collapse: collapse; width: 100%; font-size: 14px; }
th { text-align: left; font-weight: 400; color: var(--muted); font-size: 13px; }
th, td { padding: 6px 20px 6px 0; vertical-align: top; border-bottom: 1px solid var(--grid); }
td:first-child { font-family: ui-monospace, monospace; white-space: nowrap; }
"""


def markdown(settings: Settings) -> str:
    """The catalogue in Markdown."""
    lines = [f"# Features of {settings.name}", "", *_introduction(settings)]
    for title, note, (headings, rows) in _sections(settings):
        lines += ["", f"## {title}", "", note, "", _row(headings), _row(["---"] * len(headings))]
        lines += [_row([f"`{cells[0]}`", *cells[1:]]) for cells in rows]
    return "\n".join(lines) + "\n"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def html(settings: Settings) -> str:
    """The catalogue as a page that needs no network."""
    title = f"Features of {escape(settings.name)}"
    parts = [f"<h1>{title}</h1>"]
    parts += [f"<p>{escape(line)}</p>" for line in _introduction(settings) if line]
    for heading, note, (headings, rows) in _sections(settings):
        parts.append(f"<h2>{escape(heading)}</h2><p>{escape(note)}</p>")
        parts.append(_html_table(headings, rows))
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body>\n</html>\n"
    )


def _html_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def line(tag: str, cells: Sequence[str]) -> str:
        return "<tr>" + "".join(f"<{tag}>{escape(c)}</{tag}>" for c in cells) + "</tr>"

    body = "\n".join([line("th", headings), *(line("td", cells) for cells in rows)])
    return f'<div class="scroll"><table>\n{body}\n</table></div>'


FORMATS: dict[str, Callable[[Settings], str]] = {"md": markdown, "html": html}


def _introduction(settings: Settings) -> list[str]:
    return [
        f"Features hash {settings.features_hash[:12]}. The event is the record that is scored; its "
        "time is its own, not that of its arrival. A missing value is null in a prediction; "
        "the model gets what features.preparation makes of it. An event has a value if the value "
        "is not missing and the filter holds; the others do not exist for an aggregate.",
    ]


def _sections(settings: Settings) -> list[tuple[str, str, Table]]:
    schema = settings.schema_
    described = describe(schema)
    sections = [_alone(described)]
    for stage in schema.stages:
        for stream in ("events", "labels"):
            of_it = [d for d in described if (d.stage, d.stream) == (stage, stream)]
            if of_it:
                note = _rules(schema, stage, stream)
                sections.append((f"Per {stage}, from {stream}", note, _windows(of_it)))
    formulas = [d for d in described if d.kind == "formula"]
    rows = [(d.name, d.meaning, d.unit, d.missing) for d in formulas]
    note = "Computed last; they cost no state."
    sections.append(("Of other features", note, (("feature", "meaning", "unit", "missing"), rows)))
    lookups = [(d.name, d.meaning, d.unit, d.missing) for d in described if d.kind == "lookup"]
    note = "Asked for while a batch is scored; training takes them from its data."
    sections.append(("From stores", note, (("feature", "meaning", "unit", "missing"), lookups)))
    return [section for section in sections if section[2][1]]


def _alone(described: Sequence[Described]) -> tuple[str, str, Table]:
    rows = [(d.name, d.meaning, d.unit, d.missing) for d in described if d.kind == "expression"]
    return (
        "Of one event",
        "They cost no state, and no lateness changes them.",
        (("feature", "meaning", "unit", "missing"), rows),
    )


def _windows(described: Sequence[Described]) -> Table:
    headings = ("feature", "window", "meaning", "unit", "missing", "time per event")
    return headings, [(d.name, d.window, d.meaning, d.unit, d.missing, d.cost) for d in described]


def _rules(schema: Schema, stage: str, stream: str) -> str:
    """State and lateness of a stage's stream."""
    plan = KeyedStage(schema, stage).plans["labels" if stream == "labels" else "events"]
    kept = format_duration(plan.plan.horizon_ms)
    state = (
        f"State per key: 24 bytes and {8 * plan.kept_words} per kept {stream[:-1]}, which is kept "
        f"for {kept}; that is for all of these features together."
    )
    if plan.pane_names:
        exact = format_duration(plan.plan.panes.exact_ms)
        size = format_duration(plan.plan.panes.size_ms)
        state += f" Events older than {exact} are merged into panes of {size}, many into one."
    lateness = format_duration(schema.event.time.allowed_lateness)
    if stream == "events":
        return (
            f"{state} Exact for an event at most {lateness} older than its key's newest; an older "
            "one is scored from what is kept, and its prediction says late."
        )
    return (
        f"{state} A label counts at its event's time. One that comes after its delay is seen by "
        "the events after it only; training has seen it."
    )
