"""``streamscore replay``, ``cutover`` and ``follow``: versions of a job beside each other."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from jobs.exit_codes import ExitCode
from jobs.features.cli import AsJson, Conf, Properties, print_json, properties_of, settings_of

if TYPE_CHECKING:
    from jobs.settings import Settings
    from jobs.versions.control import Control


def _options(settings: Settings, properties: list[str] | None) -> dict[str, str]:
    kafka = settings.kafka
    options = {"bootstrap.servers": kafka.bootstrap_servers, "log_level": "3"}
    return options | kafka.python_properties() | properties_of(properties)


def replay(
    conf: Conf,
    version: Annotated[str, typer.Option(help="Name of the version, as v2: ends its topics.")],
    since: Annotated[
        datetime | None,
        typer.Option(
            "--from", help="Read records of this Kafka time or later; UTC. Default: all there are."
        ),
    ] = None,
    from_savepoint: Annotated[
        str, typer.Option(metavar="FOLDER", help="Begin with this state, as made by bootstrap.")
    ] = "",
    target: Annotated[
        str, typer.Option(help="host:port of a Flink JobManager; default: a mini-cluster here.")
    ] = "",
    properties: Properties = None,
) -> None:
    """Run a job over the retained topics as a version of its own, beside the one that runs.

    It reads the same topics and writes predictions to <predictions>.<version>, and so on; consumer
    group, transactions and checkpoints are its own. It catches up and then goes on live.

    Example: streamscore replay conf/fraud.yaml --version v2
    """
    from jobs import manifest, run_job, starting
    from jobs.settings_file import SettingsError
    from jobs.starting import Position, Start
    from jobs.versions.naming import versioned
    from jobs.versions.topics import make_topics

    settings = settings_of(conf)
    try:
        own = versioned(settings, version)
    except SettingsError as exc:
        raise typer.BadParameter(str(exc), param_hint="--version") from exc
    begin = manifest.from_savepoint(own, from_savepoint) if from_savepoint else starting.EMPTY
    if since is not None:
        since_ms = int(since.replace(tzinfo=UTC).timestamp() * 1_000)
        at = Position(time_ms=since_ms)
        topics = [topic for topic in (own.topics.events, own.topics.labels) if topic]
        begin = Start(begin.savepoint, begin.drops, dict.fromkeys(topics, at), since_ms)
    make_topics(settings, own, _options(settings, properties))
    raise typer.Exit(run_job.run(own, conf, target or None, begin, shows_lag=True))


def cutover(
    conf: Conf,
    to: Annotated[str, typer.Option(help="The version to follow; `base` has no ending.")] = "",
    back: Annotated[bool, typer.Option("--back", help="Follow the one before again.")] = False,
    compare: Annotated[
        int, typer.Option(min=1, help="Newest inputs of each partition to compare.")
    ] = 10_000,
    max_behind: Annotated[
        int, typer.Option(min=0, help="Inputs that it may be behind at first.")
    ] = 10_000,
    max_psi: Annotated[
        float, typer.Option(min=0, help="Population stability index of the scores.")
    ] = 0.25,
    wait_s: Annotated[
        float, typer.Option("--wait", min=0, help="Seconds for both to deal with what is there.")
    ] = 60.0,
    force: Annotated[bool, typer.Option("--force", help="Move in spite of objections.")] = False,
    properties: Properties = None,
    as_json: AsJson = False,
) -> None:
    """Let readers follow another version's predictions; exit code 1 if the two do not agree.

    Both versions' jobs must run. Compares what they made of the newest inputs, then writes one
    record that readers (`streamscore follow`) act on: no input is missed, and none counts twice.

    Example: streamscore cutover conf/fraud.yaml --to v2
    """
    from dataclasses import asdict

    from jobs.console import bars
    from jobs.settings_file import SettingsError
    from jobs.versions.cutover import control_of, cut_over, lines
    from jobs.versions.overlap import Limits

    if bool(to) == back:
        raise typer.BadParameter("name one of the two", param_hint="--to, --back")
    settings = settings_of(conf)
    options = _options(settings, properties)
    control = control_of(settings, options)
    try:
        with bars() as progress:
            done = cut_over(
                settings,
                control,
                options,
                _chosen(to, back, control),
                limits=Limits(max_behind, max_psi),
                most=compare,
                wait_s=wait_s,
                force=force,
                progress=progress,
            )
    except SettingsError as exc:
        raise typer.BadParameter(str(exc), param_hint="--to") from exc
    finally:
        control.close()
    if as_json:
        print_json(asdict(done))
    else:
        for line in lines(done):
            typer.echo(line)
    if not done.is_done:
        raise typer.Exit(ExitCode.FAILED)


def _chosen(to: str, back: bool, control: Control) -> str:
    """The version to follow; raises SettingsError if its name is none."""
    from jobs.versions.cutover import previous
    from jobs.versions.naming import version_of

    chosen = previous(control.generations) if back else version_of(to)
    if chosen is None:
        raise typer.BadParameter("there was no cutover yet", param_hint="--back")
    if chosen == control.generations[-1].version:
        raise typer.BadParameter(f"readers follow {chosen} already", param_hint="--to")
    return chosen


def follow(
    conf: Conf,
    group: Annotated[str, typer.Option(help="Consumer group: goes on where it was.")],
    limit: Annotated[int, typer.Option(min=0, help="Stop after so many; 0 goes on.")] = 0,
    properties: Properties = None,
) -> None:
    """Print predictions, one a line, of the version that is current, until Ctrl-C.

    Moves with each cutover. For programs: jobs.versions.reader.VersionReader.

    Example: streamscore follow conf/fraud.yaml --group audit
    """
    from jobs.versions.naming import control_topic
    from jobs.versions.reader import VersionReader

    settings = settings_of(conf)
    options = _options(settings, properties)
    topics = settings.topics.predictions, control_topic(settings)
    given = 0
    try:
        with VersionReader(options, *topics, group) as reader:
            while not limit or given < limit:
                found = reader.poll()
                for prediction in found:
                    typer.echo(prediction.value.decode())
                given += len(found)
                if found:
                    reader.commit()
    except KeyboardInterrupt:
        raise typer.Exit(ExitCode.OK) from None
