"""What the commands show: tables, a spinner and a progress bar, all plain when piped."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from jobs.doctor import Finding, Verdict

console = Console()
errors = Console(stderr=True)

_MARKS: dict[Verdict, str] = {
    "ok": "[green]ok[/]",
    "warning": "[yellow]warning[/]",
    "failed": "[red]failed[/]",
}


@contextmanager
def spinner(text: str) -> Iterator[Callable[[str], None]]:
    """Show that something is under way; the value changes the text."""
    with errors.status(f"{text} ...") as status:
        yield lambda step: status.update(f"{step} ...")


@contextmanager
def bars() -> Iterator[Callable[[str, float], None]]:
    """Show one bar per step; the value takes a step's name and which part of it is done, 0 to 1."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=errors) as progress:
        tasks = {}

        def show(step: str, done: float) -> None:
            if step not in tasks:
                tasks[step] = progress.add_task(step, total=1.0)
            progress.update(tasks[step], completed=done)

        yield show


def findings_table(findings: list[Finding]) -> Table:
    """The doctor's findings."""
    table = Table("check", "", "found", "fix", title="streamscore doctor")
    for finding in findings:
        table.add_row(finding.name, _MARKS[finding.verdict], finding.found, finding.fix)
    return table


def facts_table(title: str, facts: dict[str, str]) -> Table:
    """Names and values."""
    table = Table(title=title, show_header=False)
    for name, value in facts.items():
        table.add_row(name, value)
    return table
