"""The ``streamscore`` command: each command reads its options and calls one function.

Modules are imported inside the commands, so that ``--help`` does not wait for Flink.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from jobs.chaos.cli import chaos
from jobs.cluster import changes_cli
from jobs.cluster.cli import cluster_app
from jobs.environment import NotReadyError
from jobs.exit_codes import ExitCode
from jobs.features import backfill_command, state_commands
from jobs.features import cli as features_cli
from jobs.options import ConfigFile, Overrides
from jobs.options import loaded as _settings
from jobs.options import refusing as _refusing
from jobs.outlets import cli as outlets_cli
from jobs.versions import cli as versions_cli

if TYPE_CHECKING:
    from jobs.demo.outcome import Outcome
    from jobs.settings import Settings
    from udfs.scoring.rollout import Rollout

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
stack_app = typer.Typer(
    help="The local Kafka broker, for the demo, tests and benchmarks.", no_args_is_help=True
)
app.add_typer(stack_app, name="stack")
config_app = typer.Typer(help="A job's settings file.", no_args_is_help=True)
app.add_typer(config_app, name="config")

rollout_app = typer.Typer(
    help="Try a model version on a share of a running job's keys.", no_args_is_help=True
)
app.add_typer(rollout_app, name="rollout")
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
app.command("deliver")(outlets_cli.deliver)
app.add_typer(outlets_cli.store_app, name="store")

Config = Annotated[Path, typer.Option("--config", "-c", help="The job's settings file.")]
_CONFIG = Path("conf/fraud.yaml")


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
    config: Config = _CONFIG,
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
    config: Config = _CONFIG,
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
    from jobs import run_job, starting

    changes = [*(overrides or ()), *(["model.embedded=true"] if embedded else ())]
    settings = _settings(conf, changes)
    begin = (
        starting.from_savepoint(settings, from_savepoint, drops=drop_state)
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


@app.command()
def demo(
    size: Annotated[
        Literal["small", "full"], typer.Option(help="Which demo data; see streamscore data.")
    ] = "small",
    seconds: Annotated[
        float, typer.Option(min=5, help="How long the replay takes, in seconds.")
    ] = 90,
    no_live: Annotated[
        bool, typer.Option("--no-live", help="Print lines instead of a live panel.")
    ] = False,
    embedded: Annotated[
        bool, typer.Option("--embedded", help="Score inside the operator, without a server.")
    ] = False,
    keep: Annotated[
        bool, typer.Option("--keep", help="Leave everything running after the report, to Ctrl-C.")
    ] = False,
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
    from jobs.runner import JobError

    try:
        outcome = show()
    except (JobError, ReplayError, WatchError) as exc:
        typer.echo(f"the demo failed: {exc}", err=True)
        raise typer.Exit(ExitCode.FAILED) from exc
    if outcome.unaccounted:
        typer.echo(f"{outcome.unaccounted:,} records are unaccounted for", err=True)
        raise typer.Exit(ExitCode.FAILED)


@app.command("demo-iot")
def demo_iot(
    machines: Annotated[int, typer.Option(min=10, help="How many machines.")] = 2_000,
    event_seconds: Annotated[
        int, typer.Option(min=60, help="Seconds of their time, a reading a second each.")
    ] = 1_000,
    seconds: Annotated[
        float, typer.Option(min=5, help="How long the replay takes, in seconds.")
    ] = 180,
    no_live: Annotated[
        bool, typer.Option("--no-live", help="Print lines instead of a live panel.")
    ] = False,
    keep: Annotated[
        bool, typer.Option("--keep", help="Leave everything running after the report, to Ctrl-C.")
    ] = False,
) -> None:
    """Find anomalies of machines on this machine: data, model, Kafka, Flink, report.

    Example: streamscore demo-iot --machines 500 --no-live
    """
    from jobs.demo.iot import demo as show

    options = show.IotOptions(machines, event_seconds, seconds, not no_live, keep)
    _accounted(lambda: show.run(options))


@app.command("demo-feed")
def demo_feed(
    seconds: Annotated[
        float, typer.Option(min=10, help="How long the replay takes, the training apart.")
    ] = 90,
    requests: Annotated[int, typer.Option(min=20, help="How many visitors at most.")] = 3_600,
    no_live: Annotated[
        bool, typer.Option("--no-live", help="Print lines instead of a live panel.")
    ] = False,
    keep: Annotated[
        bool, typer.Option("--keep", help="Leave everything running after the report, to Ctrl-C.")
    ] = False,
    users: Annotated[
        int, typer.Option(hidden=True, help="A synthetic log of so many users; 0: the whole data.")
    ] = 0,
) -> None:
    """Rank a feed end to end on this machine: model, Kafka, Flink, gateway, feedback, next model.

    Example: streamscore demo-feed --no-live
    """
    from jobs.demo.feed import demo as show
    from jobs.runner import JobError

    try:
        outcome = show.run(show.FeedDemoOptions(seconds, requests, not no_live, keep, users))
    except JobError as exc:
        typer.echo(f"the demo failed: {exc}", err=True)
        raise typer.Exit(ExitCode.FAILED) from exc
    if outcome.unaccounted:
        typer.echo(f"{outcome.unaccounted:,} unaccounted for, see the report", err=True)
        raise typer.Exit(ExitCode.FAILED)


@config_app.command("check")
def config_check(conf: ConfigFile = _CONFIG) -> None:
    """Check a settings file: one line if it is right, else all its mistakes and exit code 3.

    Example: streamscore config check conf/fraud.yaml
    """
    from jobs import server_settings
    from jobs.settings import summary

    with _refusing():
        if server_settings.is_server_file(conf):
            models = len(server_settings.load(conf).models)
            typer.echo(f"{conf}: ok; a server of {models} model{'s' * (models != 1)}")
            return
    typer.echo(f"{conf}: ok; {summary(_settings(conf))}")


@config_app.command("show")
def config_show(
    conf: ConfigFile = _CONFIG,
    reference: Annotated[
        bool, typer.Option("--reference", help="Print what can be set, as a Markdown table.")
    ] = False,
) -> None:
    """Print the complete settings, defaults included and secrets masked, as YAML.

    Example: streamscore config show conf/fraud.yaml
    """
    from jobs import server_settings, settings

    with _refusing():
        if server_settings.is_server_file(conf):
            loaded = server_settings.load(conf)
            shown = server_settings.reference() if reference else server_settings.as_yaml(loaded)
            typer.echo(shown, nl=False)
            return
    typer.echo(settings.reference() if reference else settings.as_yaml(_settings(conf)), nl=False)


@rollout_app.command("start")
def rollout_start(
    config: Config = _CONFIG,
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


@rollout_app.command("set")
def rollout_set(
    percent: Annotated[float, typer.Option(min=0, max=100, help="The canary's share of the keys.")],
    config: Config = _CONFIG,
) -> None:
    """Change the canary's share; raising it moves no key back.

    Example: streamscore rollout set --percent 50
    """
    from jobs import rollout

    _rollout(config, lambda path: rollout.change(path, "set", percent))


@rollout_app.command("promote")
def rollout_promote(config: Config = _CONFIG) -> None:
    """Give the canary all keys.

    Example: streamscore rollout promote
    """
    from jobs import rollout

    _rollout(config, lambda path: rollout.change(path, "promote"))


@rollout_app.command("abort")
def rollout_abort(config: Config = _CONFIG) -> None:
    """Give the canary and the shadow no more calls; all keys go back to the stable version.

    Example: streamscore rollout abort
    """
    from jobs import rollout

    _rollout(config, lambda path: rollout.change(path, "abort"))


@rollout_app.command("status")
def rollout_status(config: Config = _CONFIG) -> None:
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


@stack_app.command("up")
def stack_up(config: Config = _CONFIG) -> None:
    """Start the broker and make the topics of a settings file; does only what is left to do.

    Example: STREAMSCORE_KAFKA=127.0.0.1:9093 streamscore stack up
    """
    from jobs import stack
    from jobs.console import console, spinner

    settings = _settings(config)
    with spinner("starting the stack") as progress:
        tables = [table.topic for table in settings.tables if table.topic]
        kafka, topics = settings.kafka, settings.topics
        tables += [topics.popularity] if topics.popularity else []
        state = stack.up(kafka.bootstrap_servers, topics, progress, tables=tables)
    console.print(f"Kafka runs at [bold]{state.bootstrap}[/], process {state.pid}")


@stack_app.command("down")
def stack_down() -> None:
    """Stop the broker; its topics stay in build/stack.

    Example: streamscore stack down
    """
    from jobs.stack import KafkaBroker

    typer.echo("Kafka stopped" if KafkaBroker().stop() else "Kafka was not running")


@stack_app.command("status")
def stack_status() -> None:
    """Show where the broker runs and its topics; exit code 1 if it does not run.

    Example: streamscore stack status
    """
    from jobs import stack
    from jobs.console import console, facts_table

    state = stack.KafkaBroker().status()
    if state is None:
        typer.echo("Kafka does not run; start it with: streamscore stack up")
        raise typer.Exit(ExitCode.FAILED)
    console.print(facts_table(f"Kafka at {state.bootstrap}", stack.summary(state)))


def main() -> None:
    """Run the command line; an environment that is not ready ends it with one line and the fix."""
    try:
        app()
    except NotReadyError as exc:
        typer.echo(f"{exc.problem}\nfix: {exc.fix}", err=True)
        sys.exit(ExitCode.NOT_READY)


if __name__ == "__main__":
    main()
