"""A finished feed demo as one HTML file: hit rate, latency, sources, accounts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from jobs.demo import charts, document, svg
from jobs.demo.feed.crowd import Answer

__all__ = ["FeedOutcome", "hit_rate", "page"]

_BINS = 24


@dataclass(frozen=True, slots=True)
class FeedOutcome:
    """A finished run.

    Attributes:
        facts: What ran, by name.
        answers: One for each request.
        popular: Hit rate of the ten most popular items, as a comparison.
        outages_s: When the model server did not run, from and to, seconds since the start.
        versions: Seconds since the start, and the version that came then.
        accounts: What was sent and found again: a text, and how much each side is.
        told: What happened, in sentences.
    """

    facts: Mapping[str, str]
    answers: Sequence[Answer]
    popular: float
    outages_s: Sequence[tuple[float, float]]
    versions: Sequence[tuple[float, int]]
    accounts: Sequence[tuple[str, int, int]]
    told: Sequence[str] = ()

    @property
    def unaccounted(self) -> int:
        """Differences in the accounts, without sign."""
        return sum(abs(a - b) for _, a, b in self.accounts)


def hit_rate(answers: Sequence[Answer], version: int | None = None) -> float:
    """Part of the answers with a hit, of all or of a version; NaN without one."""
    hits = [one.hit for one in answers if version is None or one.version == version]
    return float(np.mean(hits)) if hits else float("nan")


def page(outcome: FeedOutcome) -> str:
    """The whole page."""
    facts = "".join(document.pair(name, escape(text)) for name, text in outcome.facts.items())
    sections = [
        f'<header><h1>streamscore feed report</h1><dl class="facts">{facts}</dl></header>',
        _numbers(outcome),
        _told(outcome),
        _accounts(outcome),
        _hits(outcome),
        f'<div class="pair">{_latency(outcome)}{_sources(outcome)}</div>',
        _rates(outcome),
    ]
    return document.page("streamscore feed report", sections)


def _numbers(outcome: FeedOutcome) -> str:
    took = np.array([one.took_ms for one in outcome.answers])
    versions = sorted({one.version for one in outcome.answers if one.version is not None})
    shown = [
        ("requests", len(took), ",", ""),
        ("by the model", sum(one.by == "model" for one in outcome.answers), ",", ""),
        ("popular items", sum(one.by != "model" for one in outcome.answers), ",", ""),
        *((f"hit rate, version {v}", hit_rate(outcome.answers, v), ".3f", "") for v in versions),
        ("hit rate, popular", outcome.popular, ".3f", ""),
        ("latency p50", float(np.percentile(took, 50)), ",.0f", "ms"),
        ("latency p99", float(np.percentile(took, 99)), ",.0f", "ms"),
    ]
    pairs = (
        document.pair(name, document.quantity(value, form, unit))
        for name, value, form, unit in shown
    )
    return f'<dl class="numbers">{"".join(pairs)}</dl>'


def _told(outcome: FeedOutcome) -> str:
    sentences = "".join(f"<li>{escape(sentence)}</li>" for sentence in outcome.told)
    return document.section("What happened", "", f"<ol>{sentences}</ol>")


def _accounts(outcome: FeedOutcome) -> str:
    rows = "".join(
        f'<tr><td>{escape(text)}</td><td class="number">{a:,}</td>'
        f'<td class="number">{b:,}</td></tr>'
        for text, a, b in outcome.accounts
    )
    rest = outcome.unaccounted
    verdict = "Everything is accounted for" if not rest else f"{rest:,} unaccounted for"
    return document.section(
        "Accounts",
        "Counted on both sides: by who sent it, and in Kafka or by the job.",
        f'<p class="balance"><strong class="{"bad" if rest else "good"}">{verdict}</strong></p>',
        '<div class="scroll"><table><tr><th>what</th><th class="number">sent</th>'
        f'<th class="number">found</th></tr>{rows}</table></div>',
    )


def _hits(outcome: FeedOutcome) -> str:
    bins = [part for part in np.array_split(np.arange(len(outcome.answers)), _BINS) if len(part)]
    rates = [float(np.mean([outcome.answers[n].hit for n in part])) for part in bins]
    plot = svg.Plot(920, 260)
    high = max([*rates, outcome.popular, 0.1]) * 1.15
    x, y = plot.x(0, len(bins)), plot.y(high)
    ticks = [high * n / 4 for n in range(5)]
    popular = y(outcome.popular)
    parts = [svg.y_axis(plot, y, ticks, "hit rate@10", lambda value: f"{value:.2f}")]
    for n, (part, rate) in enumerate(zip(bins, rates, strict=True)):
        fallbacks = np.mean([outcome.answers[k].by != "model" for k in part])
        cls = "fallback" if fallbacks > 0.5 else "model"
        hover = f"requests {part[0] + 1:,} to {part[-1] + 1:,}: {rate:.3f}"
        parts.append(svg.rect(cls, x(n) + 1, x(n + 1) - 1, y(rate), y(0), hover))
    parts += [
        svg.line("mark", plot.left, popular, plot.right, popular),
        svg.text(plot.right, popular - 6, "popular items", "end", "halo"),
        *_version_marks(outcome, plot, x, len(bins)),
        svg.x_axis(plot, x, [], "requests in their order"),
    ]
    note = (
        "Part of the requests whose first ten items had one that was then bought, in "
        f"{len(bins)} parts of the replay. Dashed across: the ten items most popular at the "
        "start; dashed down: a version that learnt from the feedback."
    )
    drawing = svg.drawing(plot, "Hit rate over the replay", parts)
    return document.section("Hit rate", note, document.figure(drawing))


def _version_marks(outcome: FeedOutcome, plot: svg.Plot, x: svg.Scale, bins: int) -> Sequence[str]:
    marks = []
    for at_s, version in outcome.versions:
        before = sum(one.at_s < at_s for one in outcome.answers)
        across = x(bins * before / max(1, len(outcome.answers)))
        marks += [
            svg.line("mark", across, plot.top, across, plot.bottom),
            svg.text(across + 5, plot.top + 4, f"version {version}", cls="strong halo"),
        ]
    return marks


def _latency(outcome: FeedOutcome) -> str:
    took = np.array([one.took_ms for one in outcome.answers])
    marks = [(f"p{p}", float(np.percentile(took, p))) for p in (50, 99)]
    chart = charts.latency_chart(took, marks, what="request sent to answer")
    return document.section("Latency", "At the caller, all requests.", document.figure(chart))


def _sources(outcome: FeedOutcome) -> str:
    shown = Counter(reason for one in outcome.answers for reason in one.reasons)
    bought = Counter(reason for one in outcome.answers for reason in one.bought)
    rows = "".join(
        f'<tr><td>{escape(reason)}</td><td class="number">{count / shown.total():.1%}</td>'
        f'<td class="number">{bought[reason] / count:.2%}</td></tr>'
        for reason, count in shown.most_common()
    )
    return document.section(
        "Sources of what was shown",
        "The most telling reason of each item, and how many of them were bought.",
        '<div class="scroll"><table><tr><th>reason</th><th class="number">shown</th>'
        f'<th class="number">bought</th></tr>{rows}</table></div>',
    )


def _rates(outcome: FeedOutcome) -> str:
    at_ms = np.array([round(one.at_s * 1_000) for one in outcome.answers], np.int64)
    fallback = np.array([one.by != "model" for one in outcome.answers])
    counted = charts.rates(at_ms, fallback, 0, int(at_ms.max()) + 1)
    chart = charts.throughput_chart(counted, outcome.outages_s)
    legend = (
        '<div class="legend"><span><i style="background:var(--model)"></i>by the model</span>'
        '<span><i style="background:var(--fallback)"></i>popular items</span>'
        '<span><i style="background:var(--outage)"></i>model server killed</span></div>'
    )
    note = "Requests per second; nothing is sent while the next version is trained."
    return document.section("Requests", note, legend, document.figure(chart))
