from __future__ import annotations

import io
import math
from dataclasses import replace

import pytest
from rich.cells import cell_len
from rich.console import Console

from jobs.demo.live import SPARK_SAMPLES, LiveView, Snapshot, panel, plain_line, sparkline
from jobs.demo.outcome import AlertRow

ALERTS = tuple(
    AlertRow(f"tx-{i:02d}", f"card-{i}", 0.9, ("amount = 812.5 (+1.20)", "hour = 3 (+0.40)"))
    for i in range(10)
)
SNAPSHOT = Snapshot(
    phase="scoring",
    elapsed_s=12.4,
    input=1_234,
    expected_input=5_000,
    predictions=1_200,
    in_per_s=1_001.0,
    out_per_s=987.4,
    p50_ms=27.3,
    p99_ms=None,
    alerts=10,
    fallbacks=3,
    dead_letters=4,
    duplicates=7,
    checkpoints=2,
    server="serving",
    flink_url="http://127.0.0.1:8081",
    latest_alerts=ALERTS,
)
STARTING = replace(
    SNAPSHOT,
    input=0,
    expected_input=0,
    predictions=0,
    in_per_s=0.0,
    out_per_s=math.nan,
    p50_ms=None,
    latest_alerts=(),
    flink_url="",
)


def terminal(width: int, height: int = 24) -> Console:
    return Console(
        file=io.StringIO(),
        force_terminal=True,
        width=width,
        height=height,
        record=True,
        _environ={"TERM": "xterm"},
    )


def drawn(snapshot: Snapshot, width: int, height: int) -> list[str]:
    console = terminal(width, height)
    console.print(panel(snapshot, [1.0] * 70, width, height))
    return console.export_text().splitlines()


@pytest.mark.parametrize("width", [60, 120])
def test_the_panel_shows_every_number(width: int) -> None:
    text = "\n".join(drawn(SNAPSHOT, width, 23))
    for part in (
        "scoring, 12 s",
        "1,234/5,000",
        "input 1,234",
        "predictions 1,200",
        "in 1,001/s",
        "out 987/s",
        "p50 27 ms",
        "p99 -",
        "alerts 10",
        "fallbacks 3",
        "dead letters 4",
        "duplicates 7",
        "checkpoints 2",
        "server serving",
        "http://127.0.0.1:8081",
        "0.900 tx-09  card-9  amount",
        "out/s ",
    ):
        assert part in text
    assert "tx-02" in text and "tx-01" not in text


@pytest.mark.parametrize(
    ("width", "height"), [(120, 50), (80, 23), (60, 23), (46, 23), (120, 12), (120, 8), (120, 7)]
)
def test_the_panel_fits_its_terminal(width: int, height: int) -> None:
    lines = drawn(SNAPSHOT, width, height)
    assert len(lines) <= height
    assert max(map(cell_len, lines)) <= width


@pytest.mark.parametrize("width", [1, 2, 5, 10, 20, 40, 80, 300])
@pytest.mark.parametrize("height", [1, 5, 10, 24])
def test_the_view_survives_any_terminal(width: int, height: int) -> None:
    with LiveView(terminal(width, height)) as view:
        view.update(STARTING)
        view.update(SNAPSHOT)
        view.update(replace(SNAPSHOT, input=9_999, server="stopped"))


def test_the_last_panel_stays_on_the_screen() -> None:
    console = terminal(80)
    with LiveView(console) as view:
        view.update(STARTING)
        view.update(SNAPSHOT)
    assert "1,234/5,000" in console.export_text()


def test_nothing_from_outside_is_markup_or_an_escape_sequence() -> None:
    evil = replace(SNAPSHOT, latest_alerts=[AlertRow("[red]x[/]", "\x1b[2Jk\ny", 0.9, ("[b]",))])
    text = "\n".join(drawn(evil, 120, 23))
    assert "[red]x[/]  ?[2Jk?y  [b]" in text


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([], ""),
        ([0.0, 0.0], "▁▁"),
        ([0.0, 5.0, 10.0], "▁▅█"),
        ([math.nan, -1.0, math.inf, 2.0], "▁▁▁█"),
    ],
)
def test_sparkline(values: list[float], expected: str) -> None:
    assert sparkline(values) == expected


def test_the_sparkline_has_the_newest_samples() -> None:
    rates = [9.0] * 10 + [1.0] * SPARK_SAMPLES
    console = terminal(120)
    console.print(panel(SNAPSHOT, rates, 120, 23))
    assert f"out/s {'█' * SPARK_SAMPLES} " in console.export_text()


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_plain_prints_at_most_one_line_in_five_seconds() -> None:
    out, clock = io.StringIO(), Clock()
    printed = []
    with LiveView(Console(file=out, width=40), plain=True, clock=clock) as view:
        for _ in range(41):
            before = len(out.getvalue())
            view.update(SNAPSHOT)
            if len(out.getvalue()) > before:
                printed.append(clock.now_s)
            clock.now_s += 0.25
    assert printed == [100.0, 105.0, 110.0]
    assert out.getvalue() == (plain_line(SNAPSHOT) + "\n") * 3  # not wrapped at 40 characters


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_a_pipe_or_an_ascii_terminal_gets_lines(encoding: str) -> None:
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding=encoding)
    console = Console(file=file, force_terminal=encoding == "ascii", _environ={"TERM": "xterm"})
    with LiveView(console) as view:
        view.update(SNAPSHOT)
    file.flush()
    assert plain_line(SNAPSHOT) in raw.getvalue().decode()


def test_the_plain_line() -> None:
    assert plain_line(SNAPSHOT) == (
        "12 s scoring | in 1,234/5,000 (1,001/s) | out 1,200 (987/s) | p50 27 ms p99 - | alerts 10"
        " | fallbacks 3 | dead letters 4 | duplicates 7 | checkpoints 2 | model server serving"
    )
