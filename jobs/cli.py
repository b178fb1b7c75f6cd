"""The ``streamscore`` command: each command reads its options and calls one function.

Modules are imported inside the commands, so that ``--help`` does not wait for Flink.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from jobs import config_cli, rollout_cli, stack_cli
from jobs.chaos.cli import chaos
from jobs.cluster import changes_cli
from jobs.cluster.cli import cluster_app
from jobs.demo import cli as demo_cli
from jobs.environment import NotReadyError
from jobs.exit_codes import ExitCode
from jobs.features import backfill_command, state_commands
from jobs.features import cli as features_cli
from jobs.options import DEFAULT_CONFIG, Config, ConfigFile, Overrides
from jobs.options import loaded as _settings
from jobs.options import refusing as _refusing
from jobs.outlets import cli as outlets_cli
from jobs.versions import cli as versions_cli

if TYPE_CHECKING:
    from jobs.settings import Settings

_EPILOG = "Exit codes: " + "; ".join(f"{code.value} {code.meaning}" for code in ExitCode) + "."

app = typer.Typer(
    name="streamscore",
    help="Score Kafka records with machine-learning models on Flink.\n\n"
    "Start with: streamscore doctor, then: make demo",
    epilog=_EPILOG,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(stack_cli.app, name="stack")
app.add_typer(config_cli.app, name="config")
app.add_typer(rollout_cli.app, name="rollout")
app.add_typer(cluster_app, name="cluster")
for command in ("submit", "upgrade", "rescale", "inspect", "plan"):
    app.command(command)(getattr(changes_cli, command))
app.add_typer(changes_cli.savepoint_app, name="savepoint")
features_cli.app.command("backfill")(backfill_command.backfill)
features_cli.app.command("bootstrap")(state_commands.bootstrap)
features_cli.app.command("check-change")(state_commands.check_change)
app.add_typer(features_cli.app, name="features")
app.command()(versions_cli.replay)
app.command()(versions_cli.cutover)
app.command()(versions_cli.follow)
app.command()(chaos)
app.command()(demo_cli.demo)
app.command("demo-iot")(demo_cli.demo_iot)
app.command("demo-feed")(demo_cli.demo_feed)
app.command("deliver")(outlets_cli.deliver)
app.add_typer(outlets_cli.store_app, name="store")


@app.command()
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Check that this machine has all that is needed, and say how to fix what is missing.

    Example: streamscore doctor --json
    """
    from jobs import doctor as checks

    findings = checks.examine()
    if as_json:
        import orjson

        typer.echo(orjson.dumps(checks.as_json(findings), option=orjson.OPT_INDENT_2).decode())
    else:
        from jobs.console import console, findings_table

        console.print(findings_table(findings))
    if not checks.is_ready(findings):
        raise typer.Exit(ExitCode.NOT_READY)


@app.command()
def data(
    size: Annotated[
        Literal["small", "full"],
        typer.Option(help="small: 147,269 transactions, 15 s; full: 725,968, some minutes."),
    ] = "small",
) -> None:
    """Make the demo's card transactions with fraud labels; a second call finds them made.

    Example: streamscore data --size full
    """
    from jobs.console import bars, console, facts_table
    from jobs.demo import data as demo_data

    with bars() as progress:
        frame = demo_data.load(size, progress=progress)
    console.print(facts_table(f"{size} demo data", demo_data.summary(frame, size)))


@app.command()
def train(
    config: Config = DEFAULT_CONFIG,
    size: Annotated[
        Literal["small", "full"], typer.Option(help="Which demo data to train on.")
    ] = "small",
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Train on this .parquet, .csv or .jsonl instead: the event's fields and a label; "
            "of a ranking job: user, item, event_time_ms and, if known, price and category.",
        ),
    ] = None,
    source: Annotated[
        Literal["", "training"],
        typer.Option("--from", help="A ranking job: its events and examples topics, too."),
    ] = "",
) -> None:
    """Train a model on the first part of a history, measure it on the rest, store a new version.

    A ranking job's is stored only if it ranks the rest no worse than the newest version there is.

    Example: streamscore train --size full
    """
    from jobs import history_files, training
    from jobs.console import bars, console, facts_table
    from jobs.demo import data as demo_data

    settings = _settings(config)
    if settings.ranking is not None:
        _train_ranking(settings, data, source == "training")
        return
    if source:
        raise typer.BadParameter("it is for ranking jobs", param_hint="--from")
    with bars() as progress:
        if data is None:
            frame = demo_data.load(size, progress=progress)
        else:
            frame = history_files.read_frame(data, settings.schema_)
        trained = training.train(settings, frame, progress)
    version = trained.version
    title = f"model {version.name}, version {version.version}"
    console.print(facts_table(title, training.summary(trained)))
    console.print(f"Serve it with: streamscore serve --config {config}", soft_wrap=True)


def _train_ranking(settings: Settings, data: Path | None, from_topics: bool) -> None:
    from jobs import ranking_data, ranking_training
    from jobs.console import bars, console, facts_table

    with bars() as progress:
        found = ranking_data.load(settings, data, from_topics, progress)
        trained = ranking_training.train(settings, found, progress)
    version = trained.version
    title = f"model {version.name}, version {version.version}"
    console.print(facts_table(title, ranking_training.summary(trained)))


@app.command()
def serve(
    config: Config = DEFAULT_CONFIG,
    host: Annotated[str, typer.Option(help="Address to listen on; default: as configured.")] = "",
    port: Annotated[
        int | None, typer.Option(help="Port, 0 for a free one; default: as configured.")
    ] = None,
    version: Annotated[
        int | None, typer.Option(help="Model version; default: as configured, else the newest.")
    ] = None,
    workers: Annotated[
        str,
        typer.Option(help="Processes on the ports, or `cores`; default: as configured, else 1."),
    ] = "",
) -> None:
    """Serve models over TensorFlow Serving's API and the Open Inference Protocol.

    Until SIGTERM or Ctrl-C. CONFIG is a job's file, whose model is then served over gRPC, or a
    server's own, which has several models, HTTP, TLS and more.

    Example: streamscore serve --config conf/server.yaml
    """
    from jobs import server_settings, serving

    if workers and workers != "cores" and not (workers.isdecimal() and int(workers)):
        raise typer.BadParameter(
            f"{workers!r} is neither a number from 1 nor cores", param_hint="--workers"
        )
    processes: Any = int(workers) if workers.isdecimal() else workers or None
    with _refusing():
        if not server_settings.is_server_file(config):
            chosen = serving.options(
                _settings(config),
                host=host,
                port=port,
                version=version,
                workers=server_settings.worker_count(processes or 1),
            )
        else:
            if version is not None:
                raise typer.BadParameter(
                    "a server's file says which versions", param_hint="--version"
                )
            given = {"host": host or None, "port": port, "workers": processes}
            changes = {name: value for name, value in given.items() if value is not None}
            chosen = server_settings.options(server_settings.load(config, changes))
    raise typer.Exit(serving.serve(chosen))


@app.command()
def run(
    conf: ConfigFile,
    target: Annotated[
        str, typer.Option(help="host:port of a Flink JobManager; default: a mini-cluster here.")
    ] = "",
    embedded: Annotated[
        bool, typer.Option("--embedded", help="Score inside the operator, without a server.")
    ] = False,
    overrides: Overrides = None,
    from_savepoint: Annotated[
        str,
        typer.Option(
            metavar="FOLDER", help="Begin with this savepoint or retained checkpoint; or a URL."
        ),
    ] = "",
    drop_state: Annotated[
        bool, typer.Option("--drop-state", help="Lose what the settings have no use for in it.")
    ] = False,
) -> None:
    """Run a scoring job and show how it fares until Ctrl-C.

    Example: streamscore run conf/fraud.yaml --set batch.buckets=4
    """
    from jobs import manifest, run_job, starting

    changes = [*(overrides or ()), *(["model.embedded=true"] if embedded else ())]
    settings = _settings(conf, changes)
    begin = (
        manifest.from_savepoint(settings, from_savepoint, drops=drop_state)
        if from_savepoint
        else starting.EMPTY
    )
    raise typer.Exit(run_job.run(settings, conf, target or None, begin))


@app.command()
def gateway(
    conf: ConfigFile,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Override a setting; may be repeated."),
    ] = None,
) -> None:
    """Serve a ranking job over HTTP: POST /rank and /events, and a page at /.

    Until SIGTERM or Ctrl-C; a request that the job does not answer in time gets popular items.

    Example: streamscore gateway conf/feed.yaml
    """
    from jobs.gateway import service

    settings = _settings(conf, overrides or ())
    with _refusing():
        raise typer.Exit(service.serve(settings))


def main() -> None:
    """Run the command line; an environment that is not ready ends it with one line and the fix."""
    try:
        app()
    except NotReadyError as exc:
        typer.echo(f"{exc.problem}\nfix: {exc.fix}", err=True)
        sys.exit(ExitCode.NOT_READY)


if __name__ == "__main__":
    main()
