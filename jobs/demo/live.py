"""What a running demo shows: a panel that redraws itself, or a line of text every few seconds."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from jobs.demo.outcome import AlertRow

PLAIN_EVERY_S = 5.0
"""Least time between two lines of the plain view."""

SPARK_SAMPLES = 60
MAX_ALERTS = 8

_LEVELS = "▁▂▃▄▅▆▇█"
_WIDTHS = ((100, 4), (46, 2), (0, 1))
"""From how many characters on the numbers stand in how many columns."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A running demo at one moment.

    Attributes:
        phase: What is being done, in a few words.
        elapsed_s: Since the demo's start.
        input: Records written to the events topic so far.
        expected_input: Records that will be written; 0 while unknown.
        predictions: Predictions read so far, fallbacks included.
        in_per_s: Records written per second, over the last seconds.
        out_per_s: Predictions read per second, over the last seconds.
        p50_ms: Latency over the last seconds; none while unknown.
        p99_ms: The same.
        alerts: Alerts so far.
        fallbacks: Predictions so far that no model made.
        dead_letters: Records so far that could not be scored.
        duplicates: Repeated events so far.
        checkpoints: Completed so far.
        server: The model server's state: "serving", "stopped" or "embedded".
        flink_url: Address of Flink's web page, empty if there is none.
        latest_alerts: The last alerts, in the order they came.
    """

    phase: str
    elapsed_s: float
    input: int
    expected_input: int
    predictions: int
    in_per_s: float
    out_per_s: float
    p50_ms: float | None
    p99_ms: float | None
    alerts: int
    fallbacks: int
    dead_letters: int
    duplicates: int
    checkpoints: int
    server: str
    flink_url: str = ""
    latest_alerts: Sequence[AlertRow] = ()


class LiveView:
    """Shows snapshots while it is entered.

    Args:
        console: Where to draw.
        plain: Print lines even on a terminal. Where nothing can be redrawn, or the encoding has no
            box and bar characters, lines are printed anyway.
        clock: Monotonic seconds.
    """

    def __init__(
        self, console: Console, plain: bool = False, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._console = console
        self._clock = clock
        self._printed_s = -math.inf
        self._rates: deque[float] = deque(maxlen=SPARK_SAMPLES)
        can_redraw = console.is_terminal and not console.is_dumb_terminal
        is_plain = plain or not can_redraw or console.options.ascii_only
        self._live = None if is_plain else Live(console=console, auto_refresh=False)

    def __enter__(self) -> LiveView:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def update(self, snapshot: Snapshot) -> None:
        """Show a snapshot: redraw the panel, or print a line if the last one is old enough."""
        self._rates.append(snapshot.out_per_s)
        if self._live is None:
            self._print(snapshot)
            return
        size = self._console.size
        # The cursor needs a line of its own below the panel.
        drawn = panel(snapshot, tuple(self._rates), size.width, size.height - 1)
        self._live.update(drawn, refresh=True)

    def _print(self, snapshot: Snapshot) -> None:
        now_s = self._clock()
        if now_s - self._printed_s < PLAIN_EVERY_S:
            return
        self._printed_s = now_s
        # print() would wrap the line at the width of a terminal that is not there.
        self._console.print(Text(plain_line(snapshot)), soft_wrap=True)


def plain_line(snapshot: Snapshot) -> str:
    """A snapshot as one line of text."""
    s = snapshot
    parts = [
        f"{s.elapsed_s:.0f} s {_printable(s.phase)}",
        f"in {_progress(s)} ({_rate(s.in_per_s)})",
        f"out {s.predictions:,} ({_rate(s.out_per_s)})",
        f"p50 {_ms(s.p50_ms)} p99 {_ms(s.p99_ms)}",
        f"alerts {s.alerts:,}",
        f"fallbacks {s.fallbacks:,}",
        f"dead letters {s.dead_letters:,}",
        f"duplicates {s.duplicates:,}",
        f"checkpoints {s.checkpoints:,}",
        f"model server {_printable(s.server)}",
    ]
    return " | ".join(parts)


def panel(
    snapshot: Snapshot, out_per_s: Sequence[float], width: int, height: int
) -> RenderableType:
    """The panel of a snapshot; alerts, then the sparkline, give way when it is too low.

    Args:
        snapshot: What to show.
        out_per_s: The last rates, the newest last.
        width: Of the terminal, in characters.
        height: Lines the panel may take.
    """
    inner = max(width - 4, 1)
    cells = _cells(snapshot)
    columns = next(count for least, count in _WIDTHS if inner >= least)
    # Borders, the bar, and the numbers.
    left = height - 3 - math.ceil(len(cells) / columns)
    parts: list[RenderableType] = [_bar(snapshot), _grid(cells, columns)]
    if left >= 1:
        parts.append(_spark_line(out_per_s, inner))
    if left >= 3 and snapshot.latest_alerts:
        parts += ["", *_alert_lines(snapshot.latest_alerts, min(left - 2, MAX_ALERTS), inner)]
    title = Text(f"{_printable(snapshot.phase)}, {snapshot.elapsed_s:.0f} s")
    subtitle = Text(_printable(snapshot.flink_url), no_wrap=True)
    return Panel(Group(*parts), title=title, subtitle=subtitle, title_align="left", width=width)


def sparkline(values: Sequence[float]) -> str:
    """One bar character per value, from 0 to the largest; what is not finite counts as 0."""
    finite = [value if math.isfinite(value) and value > 0 else 0.0 for value in values]
    top = max(finite, default=0.0)
    if top == 0.0:
        return _LEVELS[0] * len(finite)
    return "".join(_LEVELS[round(value / top * (len(_LEVELS) - 1))] for value in finite)


def _cells(snapshot: Snapshot) -> list[tuple[str, str, str]]:
    """Name, value and style of each number."""
    s = snapshot
    server_style = "green" if s.server in ("serving", "embedded") else "bold red"
    return [
        ("input", f"{s.input:,}", ""),
        ("in", _rate(s.in_per_s), ""),
        ("alerts", f"{s.alerts:,}", ""),
        ("checkpoints", f"{s.checkpoints:,}", ""),
        ("predictions", f"{s.predictions:,}", ""),
        ("out", _rate(s.out_per_s), ""),
        ("fallbacks", f"{s.fallbacks:,}", "yellow" if s.fallbacks else ""),
        ("dead letters", f"{s.dead_letters:,}", ""),
        ("p50", _ms(s.p50_ms), ""),
        ("p99", _ms(s.p99_ms), ""),
        ("server", _printable(s.server), server_style),
        ("duplicates", f"{s.duplicates:,}", ""),
    ]


def _bar(snapshot: Snapshot) -> Table:
    grid = Table.grid(padding=(0, 1), expand=True)
    grid.add_column(ratio=1)
    grid.add_column(justify="right", no_wrap=True)
    total = max(snapshot.expected_input, snapshot.input, 1)
    grid.add_row(ProgressBar(total=total, completed=snapshot.input), Text(_progress(snapshot)))
    return grid


def _grid(cells: Sequence[tuple[str, str, str]], columns: int) -> Table:
    grid = Table.grid(padding=(0, 1), expand=True)
    for _ in range(columns):
        grid.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
    texts = [Text.assemble((f"{name} ", "dim"), (value, style)) for name, value, style in cells]
    for start in range(0, len(texts), columns):
        grid.add_row(*texts[start : start + columns])
    return grid


def _spark_line(out_per_s: Sequence[float], width: int) -> Text:
    label = "out/s "
    samples = max(min(SPARK_SAMPLES, width - len(label)), 0)
    bars = sparkline(out_per_s[len(out_per_s) - min(samples, len(out_per_s)) :])
    return Text.assemble((label, "dim"), (bars, "cyan"), no_wrap=True, overflow="crop")


def _alert_lines(alerts: Sequence[AlertRow], most: int, width: int) -> Iterable[Text]:
    for alert in list(alerts)[: -most - 1 : -1]:
        reasons = ", ".join(alert.reasons)
        line = Text.assemble(
            (f"{alert.score:.3f} ", "bold red"),
            _printable(f"{alert.event_id}  {alert.key}  "),
            (_printable(reasons), "dim"),
            no_wrap=True,
        )
        line.truncate(width, overflow="ellipsis")
        yield line


def _progress(snapshot: Snapshot) -> str:
    expected = f"/{snapshot.expected_input:,}" if snapshot.expected_input else ""
    return f"{snapshot.input:,}{expected}"


def _rate(per_s: float) -> str:
    return f"{per_s:,.0f}/s"


def _ms(value_ms: float | None) -> str:
    return "-" if value_ms is None else f"{value_ms:,.0f} ms"


def _printable(text: str) -> str:
    """Keys and ids come from outside: an escape sequence in one must not reach the terminal."""
    return "".join(char if char.isprintable() else "?" for char in text)
