"""The commands that submit a job and change it: submit, upgrade, rescale, savepoint, inspect."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from jobs.cluster.cli import Folder
from jobs.exit_codes import ExitCode
from jobs.options import ConfigFile, Overrides, changes_of, loaded, refusing

if TYPE_CHECKING:
    from jobs.cluster.standalone import StandaloneCluster
    from jobs.cluster.upgrade import Outcome

savepoint_app = typer.Typer(help="Savepoints of a running job.", no_args_is_help=True)


def _cluster(folder: Path | None) -> StandaloneCluster:
    from jobs.cluster.standalone import CLUSTER, StandaloneCluster

    return StandaloneCluster(folder or CLUSTER)


@contextmanager
def _failing() -> Iterator[None]:
    """End with exit code 1 if the job, or Flink, does not do what it should."""
    from jobs.cluster.compatibility import Incompatible
    from jobs.flink_rest import JobError

    try:
        yield
    except (Incompatible, JobError) as exc:
        typer.echo(str(exc), err=True)
        raise typer.Exit(ExitCode.FAILED) from exc


def submit(
    conf: ConfigFile,
    target: Annotated[
        Literal["session", "application", "kubernetes"],
        typer.Option(help="A running cluster; one for this job alone; or a manifest, printed."),
    ] = "session",
    taskmanagers: Annotated[
        int, typer.Option(min=1, help="TaskManagers of an application cluster.")
    ] = 1,
    slots: Annotated[int, typer.Option(min=1, help="Slots of each of them.")] = 1,
    savepoint: Annotated[
        str, typer.Option(help="Savepoint or retained checkpoint to start from.")
    ] = "",
    image: Annotated[
        str, typer.Option(help="The job's image, for kubernetes.")
    ] = "streamscore-job:0.1.0",
    folder: Folder = None,
    overrides: Overrides = None,
) -> None:
    """Pack a job, submit it, wait until it runs, and show its id and web page.

    Example: streamscore submit conf/fraud.yaml --target session --set flink.parallelism=2
    """
    from jobs import preflight
    from jobs.cluster import submission
    from jobs.console import console, errors, spinner

    settings = loaded(conf, overrides)
    if target == "kubernetes":
        from jobs.cluster.kubernetes import manifest

        typer.echo(manifest(settings, conf, image), nl=False)
        return
    for warning in preflight.check(settings, conf):
        errors.print(f"[yellow]warning:[/] {warning}", soft_wrap=True)
    cluster = _cluster(folder)
    with _failing(), spinner("packing") as tell:
        package = submission.make_package(cluster, conf, changes_of(overrides))
        if target == "session":
            job = submission.submit_session(settings, package, cluster, savepoint, tell)
        else:
            job = submission.submit_application(
                settings,
                package,
                cluster,
                savepoint,
                tell,
                task_managers=taskmanagers,
                slots=slots,
            )
    console.print(f"package {package.archive}, SHA-256 {package.sha256}", soft_wrap=True)
    console.print(f"job {job.job_id} runs; web page {job.rest.url}", soft_wrap=True)


def upgrade(conf: ConfigFile, folder: Folder = None, overrides: Overrides = None) -> None:
    """Replace a running job by the one of a settings file and the present code, from its state.

    Checks before, verifies after, and goes back to the old job if the new one fails.

    Example: streamscore upgrade conf/fraud.yaml
    """
    from jobs.cluster import upgrade as upgrades

    cluster = _cluster(folder)
    _change(lambda tell: upgrades.upgrade(conf, changes_of(overrides), cluster, tell))


def rescale(
    conf: ConfigFile,
    parallelism: Annotated[int, typer.Argument(min=1, metavar="N", help="Subtasks.")],
    folder: Folder = None,
) -> None:
    """Give a running job another parallelism; its code and settings stay.

    Example: streamscore rescale conf/fraud.yaml 2
    """
    from jobs.cluster import upgrade as upgrades

    name, cluster = loaded(conf).name, _cluster(folder)
    _change(lambda tell: upgrades.rescale(name, parallelism, cluster, tell))


def _change(act: Callable[[Callable[[str], None]], Outcome]) -> None:
    from jobs.console import console, spinner

    with refusing(), _failing(), spinner("packing") as tell:
        outcome = act(tell)
    for step, seconds in outcome.seconds.items():
        console.print(f"{step}: {seconds:.1f} s", highlight=False)
    if outcome.gap_s is not None:
        console.print(f"longest time without a prediction: {outcome.gap_s:.1f} s", highlight=False)
    console.print(f"savepoint {outcome.savepoint}", soft_wrap=True)
    if outcome.rolled_back:
        typer.echo(f"the old job runs again, the new one failed: {outcome.rolled_back}", err=True)
        raise typer.Exit(ExitCode.FAILED)
    console.print(f"job {outcome.job_id} runs", soft_wrap=True)


@savepoint_app.command("take")
def savepoint_take(
    conf: ConfigFile,
    stop: Annotated[
        bool,
        typer.Option("--stop", help="Stop the job with it; a cluster for it alone ends too."),
    ] = False,
    folder: Folder = None,
) -> None:
    """Take a savepoint of a running job, which goes on unless told to stop.

    Example: streamscore savepoint take conf/fraud.yaml
    """
    from jobs.cluster import savepoints
    from jobs.cluster.submission import JobRecord
    from jobs.running_job import RunningJob

    settings, cluster = loaded(conf), _cluster(folder)
    with _failing():
        state = cluster.running()
        job = RunningJob(JobRecord.read(cluster, settings.name).job_id, cluster.rest)
        act = savepoints.stop if stop else savepoints.take
        typer.echo(act(job, savepoints.folder_of(settings)))
        if stop and state.application:
            cluster.down()


@savepoint_app.command("list")
def savepoint_list(conf: ConfigFile) -> None:
    """List a job's savepoints on this machine, oldest first.

    Example: streamscore savepoint list conf/fraud.yaml
    """
    from datetime import UTC, datetime

    from jobs.cluster import savepoints

    with _failing():
        found = savepoints.listed(savepoints.folder_of(loaded(conf)))
    for one in found:
        made = datetime.fromtimestamp(one.made_s, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
        typer.echo(f"{made}  {one.size_bytes:>14,} bytes  {one.path}")


@savepoint_app.command("dispose")
def savepoint_dispose(
    savepoint: Annotated[str, typer.Argument(help="Its path or URL.")], folder: Folder = None
) -> None:
    """Remove a savepoint, by the running cluster.

    Example: streamscore savepoint dispose build/checkpoints/savepoints/fraud/savepoint-1
    """
    from jobs.cluster import savepoints

    with _failing():
        place = savepoint if "://" in savepoint else Path(savepoint).absolute().as_uri()
        savepoints.dispose(_cluster(folder).rest, place)


def inspect(
    savepoint: Annotated[str, typer.Argument(help="Its path or file: URL.")],
) -> None:
    """Show what a savepoint of this machine holds: state by operator, its size and its keys.

    Example: streamscore inspect build/checkpoints/savepoints/fraud/savepoint-1
    """
    from rich.table import Table

    from jobs.cluster.inspection import inspect as read
    from jobs.console import console

    with _failing():
        found = read(savepoint)
    table = Table("operator", "uid", "subtasks", "bytes", "keyed states", "keys")
    for operator in found:
        keys = ", ".join(f"{count:,} {kind}" for kind, count in sorted(operator.keys.items()))
        states = ", ".join(operator.states)
        size = f"{operator.size_bytes:,}"
        table.add_row(operator.name, operator.uid, str(operator.parallelism), size, states, keys)
    console.print(table)


def plan(
    conf: ConfigFile,
    rate: Annotated[float, typer.Option(min=1, help="Events a second.")] = 10_000,
    keys: Annotated[int, typer.Option(min=1, help="Keys of each stage.")] = 100_000,
    per_key: Annotated[float, typer.Option(min=1, help="Events that a key's history keeps.")] = 10,
    overrides: Overrides = None,
) -> None:
    """Say what a rate takes: tasks, cores, memory, checkpoints, network, and the first limit.

    Example: streamscore plan conf/fraud.yaml --rate 100000
    """
    from rich.table import Table

    from jobs.cluster.plan import Costs
    from jobs.cluster.plan import plan as lines
    from jobs.console import console

    costs = Costs.read()
    found = lines(loaded(conf, overrides), rate, keys, per_key, costs)
    table = Table("what", "needed", "why", title=f"{rate:,.0f} events/s")
    for line in found:
        table.add_row(line.what, line.value, line.reason)
    console.print(table)
    console.print(
        f"Unit costs of conf/costs.yaml, measured on {costs.measured['cpu']}: an extrapolation, "
        "to be checked with a load test.",
        soft_wrap=True,
    )
