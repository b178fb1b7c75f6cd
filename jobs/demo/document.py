"""The parts of a report's page that every demo shares: one file, no scripts, no network."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from jobs.demo import charts

__all__ = ["figure", "page", "pair", "quantity", "section"]

_STYLE = """
:root { color-scheme: light dark; --page: #ffffff; --ink: #1b1f24; --muted: #59636e;
  --grid: #e3e6ea; --model: #2f6fb3; --fallback: #d97b1f; --outage: #80808030;
  --good: #1a7f45; --bad: #c0322b; }
@media (prefers-color-scheme: dark) { :root { --page: #14171a; --ink: #e7eaee; --muted: #9ba5b0;
  --grid: #2b3137; --model: #69a6e6; --fallback: #eda04f; --outage: #a0a0a038;
  --good: #57c785; --bad: #f2786f; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 24px 16px 48px; max-width: 1000px; background: var(--page);
  color: var(--ink); font: 15px/1.45 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 24px; margin: 0; }
h2 { font-size: 16px; margin: 0 0 2px; }
p { margin: 0; }
.note { color: var(--muted); font-size: 13px; }
dl { margin: 0; }
dt { color: var(--muted); font-size: 13px; }
dd { margin: 0; overflow-wrap: anywhere; }
.facts { display: grid; gap: 8px 24px; margin-top: 16px;
  grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); }
.facts dd { font-size: 14px; }
.numbers { display: grid; gap: 14px 24px; margin-top: 24px; padding-top: 18px;
  border-top: 1px solid var(--grid); grid-template-columns: repeat(5, 1fr); }
.numbers dd { font-size: 26px; line-height: 1.2; font-variant-numeric: tabular-nums; }
.numbers small { font-size: 14px; color: var(--muted); }
.balance { margin-top: 18px; }
.good { color: var(--good); }
.bad { color: var(--bad); }
section { margin-top: 36px; min-width: 0; }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: 0 40px; }
figure { margin: 12px 0 0; }
.narrow { display: none; }
.legend { display: flex; flex-wrap: wrap; gap: 2px 18px; font-size: 13px; color: var(--muted); }
.legend i { display: inline-block; width: 12px; height: 12px; margin-right: 6px;
  vertical-align: -1px; }
.scroll { overflow-x: auto; margin-top: 10px; }
table { border-collapse: collapse; width: 100%; font-size: 14px; }
th { text-align: left; font-weight: 400; color: var(--muted); font-size: 13px; }
th, td { padding: 6px 20px 6px 0; vertical-align: top; border-bottom: 1px solid var(--grid); }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
td.reasons { font-size: 13px; overflow-wrap: anywhere; }
@media (max-width: 720px) {
  .numbers { grid-template-columns: repeat(2, 1fr); }
  .pair { grid-template-columns: 1fr; }
  .wide { display: none; }
  .narrow { display: block; }
  tr { display: grid; grid-template-columns: 1fr 1fr 6em; border-bottom: 1px solid var(--grid);
    padding: 6px 0; }
  th, td { padding: 0 12px 0 0; border: 0; overflow-wrap: anywhere; }
  .reasons { grid-column: 1 / -1; }
  th.reasons { display: none; }
}
"""


def page(title: str, sections: Sequence[str]) -> str:
    """A whole page.

    Args:
        title: Shown by the browser.
        sections: Markup, one below the other.
    """
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}{charts.STYLE}</style>\n</head>\n"
        "<body>\n" + "\n".join(sections) + "\n</body>\n</html>\n"
    )


def pair(name: str, markup: str) -> str:
    """A fact's name and its markup."""
    return f"<div><dt>{escape(name)}</dt><dd>{markup}</dd></div>"


def quantity(value: float | None, form: str, unit: str) -> str:
    """A number with its unit; a dash where there is none."""
    if value is None:
        return "&ndash;"
    return f"{value:{form}}" + (f" <small>{unit}</small>" if unit else "")


def section(title: str, note: str, *content: str) -> str:
    """A titled section with a note and markup."""
    return (
        f'<section><h2>{escape(title)}</h2><p class="note">{escape(note)}</p>'
        f"{''.join(content)}</section>"
    )


def figure(chart: str, cls: str = "") -> str:
    """A chart as a figure."""
    return f'<figure class="{cls}">{chart}</figure>'
