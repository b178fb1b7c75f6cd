"""The options of ``streamscore deliver`` and ``streamscore store``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jobs.exit_codes import ExitCode

if TYPE_CHECKING:
    from jobs.outlets.run import Outlet
    from jobs.settings import Settings

Conf = Annotated[Path, typer.Argument(metavar="CONF", help="The job's settings file.")]
MetricsPort = Annotated[
    int | None,
    typer.Option(help="Port on 127.0.0.1 of a page for Prometheus, 0 for a free one."),
]

store_app = typer.Typer(
    help="Keep all predictions in PostgreSQL or in Parquet files.\n\n"
    "Start with: streamscore store init CONF, then: streamscore store run CONF",
    no_args_is_help=True,
)


@contextmanager
def _refusing() -> Iterator[None]:
    """End with its exit code if the settings are refused."""
    from jobs.settings_file import SettingsError

    try:
        yield
    except SettingsError as exc:
        typer.echo(str(exc), err=True)
        raise typer.Exit(ExitCode.CONFIG_REFUSED) from exc


def _loaded(conf: Path) -> Settings:
    from jobs import settings

    with _refusing():
        return settings.load(conf)


def _run(
    conf: Path, outlets: Callable[[Settings], Sequence[Outlet]], metrics_port: int | None
) -> None:
    from confluent_kafka import KafkaException

    from jobs.outlets import run

    settings = _loaded(conf)
    with _refusing():
        wanted = outlets(settings)
    try:
        run.run(settings, wanted, metrics_port)
    except KafkaException as exc:
        typer.echo(f"Kafka: {exc.args[0].str()}; what was not handed on is still there", err=True)
        raise typer.Exit(ExitCode.FAILED) from exc


def deliver(conf: Conf, metrics_port: MetricsPort = None) -> None:
    """Take alerts to Amazon SNS and to a webhook, until SIGTERM or Ctrl-C.

    A process of its own beside the job: while a target is down its alerts wait in Kafka, and the
    job goes on. An alert is delivered at least once; after a kill it may come again, with the same
    id (SNS: the attribute alert_id, and the deduplication id of a .fifo topic; webhook: the header
    Idempotency-Key). What a target refuses, or has not taken within delivery.give_up_after, goes to
    the topic delivery.dead_letters. Several processes share the work.

    The targets are in the section delivery of CONF, for example:

    delivery:
      webhook: {url: "https://alerts.example.org/in", token: "${WEBHOOK_TOKEN}"}
      sns: {topic_arn: "arn:aws:sns:eu-west-1:123456789012:alerts.fifo"}

    Example: streamscore deliver conf/fraud.yaml --metrics-port 9105
    """
    from jobs.outlets import delivery

    _run(conf, delivery.outlets, metrics_port)


@store_app.command("init")
def store_init(
    conf: Conf,
    only_print: Annotated[
        bool, typer.Option("--print", help="Print the SQL and do nothing.")
    ] = False,
) -> None:
    """Make the table of store.postgres, its indexes and, where TimescaleDB is, its hypertable.

    Compression and retention follow store.postgres.compress_after and keep. Doing it again does no
    harm; after a change of features it adds their columns.

    Example: streamscore store init conf/fraud.yaml --print
    """
    from jobs.outlets import postgres, postgres_sql, storing

    settings = _loaded(conf)
    with _refusing():
        own = storing.postgres_of(settings)
    if only_print:
        typer.echo(postgres_sql.init(own, settings.schema_.columns), nl=False)
        return
    postgres.init(own, settings.schema_.columns)
    typer.echo(f"table {own.table} is ready")


@store_app.command("run")
def store_run(conf: Conf, metrics_port: MetricsPort = None) -> None:
    """Write predictions to the stores of CONF, until SIGTERM or Ctrl-C.

    A process of its own beside the job: while PostgreSQL is down predictions wait in Kafka, and the
    job goes on. A row is named by key, event time and event id, and a file by its offsets, so that
    what is written again replaces itself. Several processes share the work.

    Example: streamscore store run conf/fraud.yaml
    """
    from jobs.outlets import storing

    _run(conf, storing.outlets, metrics_port)
