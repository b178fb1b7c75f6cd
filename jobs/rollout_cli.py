"""``streamscore rollout``: another version or server for a share of the keys."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jobs.exit_codes import ExitCode
from jobs.options import DEFAULT_CONFIG, Config
from jobs.options import loaded as _settings
from jobs.options import refusing as _refusing

if TYPE_CHECKING:
    from udfs.scoring.rollout import Rollout

app = typer.Typer(
    help="Try a model version on a share of a running job's keys.", no_args_is_help=True
)


@app.command("start")
def rollout_start(
    config: Config = DEFAULT_CONFIG,
    version: Annotated[int | None, typer.Option(min=1, help="The canary's version.")] = None,
    server: Annotated[
        str, typer.Option(help="The canary's host:port; default: the job's own server.")
    ] = "",
    percent: Annotated[float, typer.Option(min=0, max=100, help="Its share of the keys.")] = 10,
    shadow_version: Annotated[
        int | None, typer.Option(min=1, help="The version that gets copies.")
    ] = None,
    shadow_server: Annotated[
        str, typer.Option(help="Where copies go; default: the job's own server.")
    ] = "",
    shadow_percent: Annotated[
        float, typer.Option(min=0, max=100, help="Of which share of the keys.")
    ] = 100,
    max_error_rate: Annotated[
        float, typer.Option(min=0, max=1, help="Share of unanswered rows beyond stable's.")
    ] = 0.05,
    max_latency_ratio: Annotated[
        float, typer.Option(min=1, help="p90 of a call's time, in stable ones.")
    ] = 2.0,
    max_psi: Annotated[
        float, typer.Option(min=0, help="Population stability index of the scores.")
    ] = 0.25,
    min_rows: Annotated[int, typer.Option(min=1, help="Rows before anything is judged.")] = 500,
) -> None:
    """Send a share of the keys to another version or server, or copies to one.

    A key stays on its side while the share grows. The job itself ends the canary when it goes past
    a limit; a shadow's answers go to topics.shadow. Takes effect within a second or two.

    Example: streamscore rollout start --version 4 --percent 10
    """
    from jobs import rollout
    from udfs.scoring.rollout import Address, Limits

    canary = Address(server, version, percent) if version or server else None
    shadow = (
        Address(shadow_server, shadow_version, shadow_percent)
        if shadow_version or shadow_server
        else None
    )
    limits = Limits(max_error_rate, max_latency_ratio, max_psi, min_rows)

    def start(path: Path) -> Rollout:
        return rollout.start(path, canary, shadow, limits)

    _rollout(config, start)


@app.command("set")
def rollout_set(
    percent: Annotated[float, typer.Option(min=0, max=100, help="The canary's share of the keys.")],
    config: Config = DEFAULT_CONFIG,
) -> None:
    """Change the canary's share; raising it moves no key back.

    Example: streamscore rollout set --percent 50
    """
    from jobs import rollout

    _rollout(config, lambda path: rollout.change(path, "set", percent))


@app.command("promote")
def rollout_promote(config: Config = DEFAULT_CONFIG) -> None:
    """Give the canary all keys.

    Example: streamscore rollout promote
    """
    from jobs import rollout

    _rollout(config, lambda path: rollout.change(path, "promote"))


@app.command("abort")
def rollout_abort(config: Config = DEFAULT_CONFIG) -> None:
    """Give the canary and the shadow no more calls; all keys go back to the stable version.

    Example: streamscore rollout abort
    """
    from jobs import rollout

    _rollout(config, lambda path: rollout.change(path, "abort"))


@app.command("status")
def rollout_status(config: Config = DEFAULT_CONFIG) -> None:
    """Say what the rollout file says, and why a canary was aborted.

    Example: streamscore rollout status
    """
    from udfs.scoring.rollout import Rollout

    _rollout(config, Rollout.read)


def _rollout(config: Path, act: Callable[[Path], Rollout | None]) -> None:
    from jobs import rollout
    from udfs.scoring.rollout import RolloutError

    try:
        with _refusing():
            path = rollout.file_of(_settings(config))
        done = act(path)
    except RolloutError as exc:
        typer.echo(str(exc), err=True)
        raise typer.Exit(ExitCode.FAILED) from exc
    for line in rollout.status_lines(done):
        typer.echo(line)
