"""``streamscore stack``: the local broker."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from jobs.exit_codes import ExitCode
from jobs.options import DEFAULT_CONFIG, Config
from jobs.options import loaded as _settings

if TYPE_CHECKING:
    pass

app = typer.Typer(
    help="The local Kafka broker, for the demo, tests and benchmarks.", no_args_is_help=True
)


@app.command("up")
def stack_up(config: Config = DEFAULT_CONFIG) -> None:
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


@app.command("down")
def stack_down() -> None:
    """Stop the broker; its topics stay in build/stack.

    Example: streamscore stack down
    """
    from jobs.kafka_broker import KafkaBroker

    typer.echo("Kafka stopped" if KafkaBroker().stop() else "Kafka was not running")


@app.command("status")
def stack_status() -> None:
    """Show where the broker runs and its topics; exit code 1 if it does not run.

    Example: streamscore stack status
    """
    from jobs import kafka_broker, stack
    from jobs.console import console, facts_table

    state = kafka_broker.KafkaBroker().status()
    if state is None:
        typer.echo("Kafka does not run; start it with: streamscore stack up")
        raise typer.Exit(ExitCode.FAILED)
    console.print(facts_table(f"Kafka at {state.bootstrap}", stack.summary(state)))
