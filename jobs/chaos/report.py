"""What a run of chaos came to: a JSON document and a page with a timeline."""

from __future__ import annotations

from dataclasses import asdict
from html import escape
from pathlib import Path
from statistics import median
from typing import Any

import orjson

from jobs.chaos.faults import KINDS
from jobs.chaos.ledger import Ledger
from jobs.chaos.run import Done, Outcome
from jobs.demo.document import figure, page, pair, quantity, section
from jobs.demo.svg import Plot, drawing, line, rect, round_ticks, text, x_axis, y_axis

_WIDTH, _ROW = 960.0, 22.0
_NOTE = (
    "recovery: from the end of the fault (a kill ends at once, and what was killed is started "
    "again) until every task runs and then the model has scored a newer event of each partition"
)


def document(outcome: Outcome) -> dict[str, Any]:
    """The run for programs."""
    ledger, options = outcome.ledger, outcome.options
    recovery: dict[str, list[float | None]] = {}
    for done in outcome.faults:
        recovery.setdefault(done.kind, []).append(_rounded(done.recovery_s))
    return {
        "conf": options.conf.name,
        "changed": options.overrides,
        "seed": options.seed,
        "started": outcome.started,
        "seconds": round(outcome.seconds, 1),
        "faults": len(outcome.faults),
        "kinds": len(recovery),
        "records": ledger.records,
        "events": ledger.written,
        "copies": ledger.copies,
        "poison": len(ledger.poison),
        "predictions": ledger.predictions,
        "lost": ledger.lost,
        "wrong": outcome.wrong,
        "duplicates": ledger.repeats,
        "fallbacks": dict(ledger.fallbacks.most_common()),
        "late": outcome.late,
        "values_compared": outcome.compared,
        "value_differences": outcome.differences,
        "unrecovered": outcome.unrecovered,
        "skipped": outcome.skipped,
        "recovery_s": recovery,
        "held_s": {
            kind: [_rounded(d.held_s) for d in outcome.faults if d.kind == kind]
            for kind in recovery
        },
        "first_lost": ledger.first_lost(),
        "first_wrong": [asdict(difference) for difference in outcome.first],
        "timeline": [asdict(done) for done in outcome.faults],
    }


def write(outcome: Outcome, folder: Path) -> tuple[Path, Path]:
    """Write ``report.json`` and ``report.html``; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    as_json, as_html = folder / "report.json", folder / "report.html"
    as_json.write_bytes(orjson.dumps(document(outcome), option=orjson.OPT_INDENT_2))
    as_html.write_text(html(outcome), encoding="utf-8")
    return as_json, as_html


def summary(outcome: Outcome) -> dict[str, str]:
    """The run in a few lines."""
    ledger = outcome.ledger
    return {
        "faults": f"{len(outcome.faults)} of {len({d.kind for d in outcome.faults})} kinds",
        "not recovered": str(outcome.unrecovered),
        "records": f"{ledger.records:,}",
        "lost": f"{ledger.lost:,}",
        "wrong": f"{outcome.wrong:,} ({outcome.compared:,} values of features recomputed)",
        "repeated predictions": f"{ledger.repeats:,}",
        "fallbacks": _fallbacks(ledger),
        "late predictions": f"{outcome.late:,}",
    }


def _fallbacks(ledger: Ledger) -> str:
    """How many, and how many for each reason."""
    reasons = ", ".join(f"{name} {n:,}" for name, n in ledger.fallbacks.most_common())
    return f"{ledger.fallbacks.total():,}" + f" ({reasons})" * bool(reasons)


def html(outcome: Outcome) -> str:
    """The page."""
    ledger, options = outcome.ledger, outcome.options
    verdict = "nothing lost, nothing wrong" if outcome.is_good else "not as it should be"
    cls = "good" if outcome.is_good else "bad"
    numbers = [
        ("faults", quantity(len(outcome.faults), ",.0f", "")),
        ("records", quantity(ledger.records, ",.0f", "")),
        ("lost", quantity(ledger.lost, ",.0f", "")),
        ("wrong", quantity(outcome.wrong, ",.0f", "")),
        ("repeated", quantity(ledger.repeats, ",.0f", "")),
    ]
    facts = {
        "settings": options.conf.name,
        "started": outcome.started,
        "lasted": f"{outcome.seconds:,.0f} s",
        "seed": str(options.seed),
        "values recomputed": f"{outcome.compared:,}",
        "fallbacks": _fallbacks(ledger),
        "late": f"{outcome.late:,}",
        "not recovered": str(outcome.unrecovered),
    }
    head = (
        "<h1>Chaos</h1>"
        f'<p class="balance {cls}">{verdict}</p>'
        f'<dl class="facts">{"".join(pair(n, escape(v)) for n, v in facts.items())}</dl>'
        f'<dl class="numbers">{"".join(pair(n, v) for n, v in numbers)}</dl>'
    )
    sections = [
        head,
        section("Timeline", "orange: broken; blue: until it works again", _timeline(outcome)),
        section("Predictions a second", "as they were read", _rate(outcome)),
        section("Recovery by kind", _NOTE, _by_kind(outcome)),
        section("Every fault", "in order", _table(outcome.faults)),
    ]
    return page("Chaos", sections)


def _timeline(outcome: Outcome) -> str:
    kinds = list(dict.fromkeys(done.kind for done in outcome.faults))
    plot = Plot(_WIDTH, 60 + _ROW * max(1, len(kinds)), left=140, top=10)
    x = plot.x(0.0, max(1.0, outcome.seconds))
    parts = []
    for row, kind in enumerate(kinds):
        top = plot.top + row * _ROW
        parts += [text(plot.left - 8, top + 14, kind, "end")]
        parts += [line("grid", plot.left, top + _ROW - 2, plot.right, top + _ROW - 2)]
        for done in (d for d in outcome.faults if d.kind == kind):
            healed_s = done.at_s + done.held_s
            end_s = healed_s + (done.recovery_s or 0.0)
            parts += [
                rect("fallback", x(done.at_s), x(healed_s), top + 2, top + 17, done.line()),
                rect("model", x(healed_s), x(end_s), top + 2, top + 17, done.line()),
            ]
    parts += [x_axis(plot, x, _minutes(outcome.seconds), "minutes since the first event")]
    return figure(drawing(plot, "when each fault was made and recovered from", parts))


def _rate(outcome: Outcome) -> str:
    plot = Plot(_WIDTH, 220.0)
    bin_s = max(1, round(outcome.seconds / 300))
    bins: dict[int, int] = {}
    for second, count in outcome.per_second.items():
        bins[second // bin_s] = bins.get(second // bin_s, 0) + count
    ticks = round_ticks(max(bins.values(), default=1) / bin_s)
    x, y = plot.x(0.0, max(1.0, outcome.seconds)), plot.y(ticks[-1])
    parts = [y_axis(plot, y, ticks, "a second", lambda tick: f"{tick:,.0f}")]
    for n, count in sorted(bins.items()):
        start_s, rate = n * bin_s, count / bin_s
        end_s = min(start_s + bin_s, outcome.seconds)
        hover = f"{start_s:,.0f} s: {rate:,.0f} a second"
        parts += [rect("model", x(start_s), x(end_s), y(rate), plot.bottom, hover)]
    parts += [x_axis(plot, x, _minutes(outcome.seconds), "minutes since the first event")]
    return figure(drawing(plot, "predictions a second", parts))


def _minutes(seconds: float) -> list[tuple[float, str]]:
    return [(60 * m, f"{m:g}") for m in round_ticks(seconds / 60, 10) if 60 * m <= seconds]


def _by_kind(outcome: Outcome) -> str:
    kinds = list(dict.fromkeys(done.kind for done in outcome.faults))
    rows = []
    for kind in sorted(kinds):
        made = [d for d in outcome.faults if d.kind == kind]
        times = [d.recovery_s for d in made if d.recovery_s is not None]
        middle = f"{median(times):.1f}" if times else "-"
        longest = f"{max(times):.1f}" if times else "-"
        cells = [kind, KINDS[kind].about, str(len(made)), middle, longest]
        rows.append(cells)
    return _markup(["kind", "what", "made", "median s", "longest s"], rows, numbers_from=2)


def _table(faults: list[Done]) -> str:
    rows = [
        [
            str(d.number),
            d.kind,
            d.detail + (f"; {d.trouble}" if d.trouble else ""),
            f"{d.at_s:.1f}",
            f"{d.held_s:.1f}",
            "not recovered" if d.recovery_s is None else f"{d.recovery_s:.1f}",
        ]
        for d in faults
    ]
    return _markup(["", "kind", "what", "at s", "held s", "recovery s"], rows, numbers_from=3)


def _markup(heads: list[str], rows: list[list[str]], numbers_from: int) -> str:
    def cell(tag: str, n: int, content: str) -> str:
        cls = ' class="number"' if n >= numbers_from else ""
        return f"<{tag}{cls}>{escape(content)}</{tag}>"

    lines = ["".join(cell("th", n, head) for n, head in enumerate(heads))]
    lines += ["".join(cell("td", n, content) for n, content in enumerate(row)) for row in rows]
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f'<div class="scroll"><table>{body}</table></div>'


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 2)
