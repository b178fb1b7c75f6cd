"""What a running feed demo shows: a panel, or a line every few seconds."""

from __future__ import annotations

from collections import Counter
from threading import Event, Thread
from typing import Self

import numpy as np
from rich.console import Console
from rich.live import Live
from rich.table import Table

from jobs.demo.feed.crowd import Answer, Crowd
from jobs.demo.feed.page import hit_rate
from jobs.demo.live import sparkline
from jobs.demo.model_process import ModelProcess

__all__ = ["FeedView"]

_EVERY_S, _PLAIN_EVERY_S = 0.5, 5.0
_RECENT = 200


class FeedView:
    """Shows a crowd from a thread while it is entered.

    Args:
        console: Where to draw.
        crowd: Whose answers.
        server: Whose state.
        plain: Print lines even on a terminal.
    """

    def __init__(
        self, console: Console, crowd: Crowd, server: ModelProcess, plain: bool = False
    ) -> None:
        self._console = console
        self._crowd = crowd
        self._server = server
        is_plain = plain or not console.is_terminal or console.is_dumb_terminal
        self._live = None if is_plain else Live(console=console, auto_refresh=False)
        self._stop = Event()
        self._thread = Thread(target=self._run, name="feed-view", daemon=True)

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        if self._live is not None:
            self._live.stop()

    def _run(self) -> None:
        while not self._stop.wait(_PLAIN_EVERY_S if self._live is None else _EVERY_S):
            answers = list(self._crowd.answers)
            if not answers:
                continue
            if self._live is None:
                text = " | ".join(f"{name} {value}" for name, value in self._facts(answers))
                self._console.print(text, soft_wrap=True, highlight=False)
            else:
                self._live.update(self._panel(answers), refresh=True)

    def _facts(self, answers: list[Answer]) -> list[tuple[str, str]]:
        recent = answers[-_RECENT:]
        took = np.array([one.took_ms for one in recent])
        by = Counter(one.by for one in answers)
        return [
            ("requests", f"{len(answers):,}"),
            ("by the model", f"{by['model']:,}"),
            ("popular items", f"{len(answers) - by['model']:,}"),
            ("p50", f"{np.percentile(took, 50):,.0f} ms"),
            ("p99", f"{np.percentile(took, 99):,.0f} ms"),
            ("hit rate@10", f"{hit_rate(recent):.3f}"),
            ("version", str(next((a.version for a in reversed(recent) if a.version), "none"))),
            ("model server", "serving" if self._server.is_serving else "killed"),
        ]

    def _panel(self, answers: list[Answer]) -> Table:
        table = Table(title="feed, the last 200 requests", show_header=False)
        for name, value in self._facts(answers):
            table.add_row(name, value)
        rates = [hit_rate(answers[n : n + 100]) for n in range(0, len(answers), 100)]
        table.add_row("hit rate", sparkline(rates[-60:]))
        return table
