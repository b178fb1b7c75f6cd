"""``streamscore features bootstrap`` and ``check-change``: what state begins with and keeps."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jobs.exit_codes import ExitCode
from jobs.features.cli import AsJson, Conf, Properties, print_json, properties_of, settings_of

if TYPE_CHECKING:
    from jobs.features.changes import Changes


def bootstrap(
    conf: Conf,
    data: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The history: a .parquet, .csv or .jsonl of events."),
    ] = None,
    from_kafka: Annotated[
        bool, typer.Option("--from-kafka", help="The history is what the topics hold now.")
    ] = False,
    until: Annotated[
        datetime | None,
        typer.Option(help="Leave out later events of the file; UTC, as 2026-03-01T00:00:00."),
    ] = None,
    out: Annotated[
        Path,
        typer.Option(metavar="FOLDER", help="Where the savepoint's folder is made; local."),
    ] = Path("build/savepoints"),
    properties: Properties = None,
) -> None:
    """Write a savepoint with a history in its state: a job begins as if it had seen all of it.

    Nothing is scored and no topic is written. From a file, the job goes on in its topics at the
    allowed lateness before the newest event; events of the overlap are known by their ids. From
    Kafka, it goes on right after what was read.

    Example: streamscore features bootstrap conf/fraud.yaml --data history.parquet
    """
    from jobs.console import bars, console, facts_table
    from jobs.features import bootstrap as features
    from jobs.features import history
    from jobs.flink_rest import JobError

    if (data is None) != from_kafka:
        raise typer.BadParameter("name one of the two", param_hint="--data, --from-kafka")
    if from_kafka and until is not None:
        raise typer.BadParameter("it is for --data", param_hint="--until")
    settings = settings_of(conf)
    until_ms = None if until is None else int(until.replace(tzinfo=UTC).timestamp() * 1_000)
    try:
        with bars() as progress:
            past = (
                history.of_topics(settings, properties_of(properties), progress)
                if data is None
                else history.of_file(settings, data, until_ms, progress)
            )
            done = features.bootstrap(settings, past, out, progress)
    except JobError as exc:
        typer.echo(f"the bootstrap failed: {exc}", err=True)
        raise typer.Exit(ExitCode.FAILED) from exc
    console.print(facts_table(f"state of {settings.name}", features.summary(done)))
    console.print(f"streamscore run {conf} --from-savepoint {done.savepoint}", soft_wrap=True)


def check_change(
    new: Annotated[Path, typer.Argument(metavar="NEW_CONF", help="The settings to go on with.")],
    old: Annotated[
        Path | None, typer.Option(metavar="CONF", help="The settings of the running job.")
    ] = None,
    savepoint: Annotated[
        str, typer.Option(help="Or: the savepoint to start from, if it has a streamscore.json.")
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Say what new settings do to a job's state, feature by feature; exit code 1 if refused.

    Example: streamscore features check-change conf/new.yaml --old conf/fraud.yaml
    """
    from dataclasses import asdict

    from rich.table import Table

    from jobs.console import console
    from jobs.features.changes import changes_of, compare
    from jobs.manifest import Manifest

    if (old is None) == (not savepoint):
        raise typer.BadParameter("name one of the two", param_hint="--old, --savepoint")
    found: Changes
    if old is not None:
        found = compare(settings_of(old), settings_of(new))
    else:
        manifest = Manifest.read(savepoint)
        if manifest is None:
            raise typer.BadParameter(f"{savepoint} has none", param_hint="--savepoint")
        found = changes_of(manifest.fingerprint, settings_of(new))
    if as_json:
        print_json([asdict(change) for change in found])
    else:
        table = Table("change", "feature", "effect", "reason")
        for change in found:
            table.add_row(change.kind, change.feature, change.effect, change.reason)
        console.print(table)
    if any(change.effect == "refused" for change in found):
        raise typer.Exit(ExitCode.FAILED)
