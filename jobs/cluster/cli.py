"""``streamscore cluster``: a standalone Flink cluster on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from jobs.exit_codes import ExitCode

cluster_app = typer.Typer(
    help="A standalone Flink cluster on this machine, loopback only.", no_args_is_help=True
)
Folder = Annotated[
    Path | None,
    typer.Option("--folder", help="The cluster's files; default: build/cluster.", metavar="DIR"),
]


@cluster_app.command()
def up(
    taskmanagers: Annotated[int, typer.Option(min=1, help="How many TaskManagers.")] = 2,
    slots: Annotated[int, typer.Option(min=1, help="Slots of each TaskManager.")] = 1,
    port: Annotated[
        int | None, typer.Option(help="Port of the web page; default: a free one.")
    ] = None,
    folder: Folder = None,
) -> None:
    """Start a cluster of Flink's own scripts; starts only what is missing.

    Example: streamscore cluster up --taskmanagers 2
    """
    from jobs.cluster.standalone import CLUSTER, StandaloneCluster
    from jobs.console import console, spinner

    with spinner("starting Flink"):
        state = StandaloneCluster(folder or CLUSTER).up(taskmanagers, slots, port=port)
    console.print(f"web page http://{state.rest}", soft_wrap=True)
    for name, started in state.processes.items():
        console.print(f"{name}: process {started.pid}", highlight=False)


@cluster_app.command()
def down(folder: Folder = None) -> None:
    """Stop the cluster and its jobs; their checkpoints and savepoints stay.

    Example: streamscore cluster down
    """
    from jobs.cluster.standalone import CLUSTER, StandaloneCluster

    stopped = StandaloneCluster(folder or CLUSTER).down()
    typer.echo("the cluster is stopped" if stopped else "no cluster was running")


@cluster_app.command()
def status(folder: Folder = None) -> None:
    """Show the cluster's processes, slots and jobs; exit code 1 if it does not run.

    Example: streamscore cluster status
    """
    from jobs.cluster.standalone import CLUSTER, StandaloneCluster
    from jobs.cluster.status import facts
    from jobs.console import console, facts_table

    cluster = StandaloneCluster(folder or CLUSTER)
    state = cluster.state()
    if state is None:
        typer.echo("no cluster runs; start one with: streamscore cluster up")
        raise typer.Exit(ExitCode.FAILED)
    console.print(facts_table(f"Flink at http://{state.rest}", facts(cluster, state)))
