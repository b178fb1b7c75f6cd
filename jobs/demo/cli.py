"""The demos' commands: each reads its options and runs one."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from jobs.exit_codes import ExitCode

if TYPE_CHECKING:
    from jobs.demo.outcome import Outcome

_NoLive = Annotated[bool, typer.Option("--no-live", help="Print lines instead of a live panel.")]
_Keep = Annotated[
    bool, typer.Option("--keep", help="Leave everything running after the report, to Ctrl-C.")
]


def demo(
    size: Annotated[
        Literal["small", "full"], typer.Option(help="Which demo data; see streamscore data.")
    ] = "small",
    seconds: Annotated[
        float, typer.Option(min=5, help="How long the replay takes, in seconds.")
    ] = 90,
    no_live: _NoLive = False,
    embedded: Annotated[
        bool, typer.Option("--embedded", help="Score inside the operator, without a server.")
    ] = False,
    keep: _Keep = False,
    limit: Annotated[
        int, typer.Option(hidden=True, help="Only the first so many transactions; 0 takes all.")
    ] = 0,
) -> None:
    """Score card transactions end to end on this machine: data, model, Kafka, Flink, report.

    Example: streamscore demo --no-live
    """
    from jobs.demo import demo as show

    options = show.DemoOptions(size, seconds, not no_live, embedded, keep, limit)
    _accounted(lambda: show.run(options))


def _accounted(show: Callable[[], Outcome]) -> None:
    """Run a demo; it fails if a record is unaccounted for."""
    from jobs.demo.replay import ReplayError
    from jobs.demo.watch import WatchError
    from jobs.flink_rest import JobError

    try:
        outcome = show()
    except (JobError, ReplayError, WatchError) as exc:
        typer.echo(f"the demo failed: {exc}", err=True)
        raise typer.Exit(ExitCode.FAILED) from exc
    if outcome.unaccounted:
        typer.echo(f"{outcome.unaccounted:,} records are unaccounted for", err=True)
        raise typer.Exit(ExitCode.FAILED)


def demo_iot(
    machines: Annotated[int, typer.Option(min=10, help="How many machines.")] = 2_000,
    event_seconds: Annotated[
        int, typer.Option(min=60, help="Seconds of their time, a reading a second each.")
    ] = 1_000,
    seconds: Annotated[
        float, typer.Option(min=5, help="How long the replay takes, in seconds.")
    ] = 180,
    no_live: _NoLive = False,
    keep: _Keep = False,
) -> None:
    """Find anomalies of machines on this machine: data, model, Kafka, Flink, report.

    Example: streamscore demo-iot --machines 500 --no-live
    """
    from jobs.demo.iot import demo as show

    options = show.IotOptions(machines, event_seconds, seconds, not no_live, keep)
    _accounted(lambda: show.run(options))


def demo_feed(
    seconds: Annotated[
        float, typer.Option(min=10, help="How long the replay takes, the training apart.")
    ] = 90,
    requests: Annotated[int, typer.Option(min=20, help="How many visitors at most.")] = 1_800,
    no_live: _NoLive = False,
    keep: _Keep = False,
    users: Annotated[
        int, typer.Option(hidden=True, help="A synthetic log of so many users; 0: the whole data.")
    ] = 0,
) -> None:
    """Rank a feed end to end on this machine: model, Kafka, Flink, gateway, feedback, next model.

    Example: streamscore demo-feed --no-live
    """
    from jobs.demo.feed import demo as show
    from jobs.flink_rest import JobError

    try:
        outcome = show.run(show.FeedDemoOptions(seconds, requests, not no_live, keep, users))
    except JobError as exc:
        typer.echo(f"the demo failed: {exc}", err=True)
        raise typer.Exit(ExitCode.FAILED) from exc
    if outcome.unaccounted:
        typer.echo(f"{outcome.unaccounted:,} unaccounted for, see the report", err=True)
        raise typer.Exit(ExitCode.FAILED)
