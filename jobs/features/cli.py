"""``streamscore features``: what the features are, what they cost, and whether they are right."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from jobs.exit_codes import ExitCode

if TYPE_CHECKING:
    from jobs.features.columns import Source
    from jobs.settings import Settings

app = typer.Typer(
    help="A job's features: their meaning, their memory, and whether its predictions have them.",
    no_args_is_help=True,
)

Conf = Annotated[Path, typer.Argument(metavar="CONF", help="The job's settings file.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Properties = Annotated[
    list[str] | None,
    typer.Option(
        "--kafka-property",
        metavar="NAME=VALUE",
        help="A property of librdkafka beside kafka.client_properties, as debug=broker; may be "
        "repeated.",
    ),
]


def _settings(path: Path) -> Settings:
    from jobs import settings
    from jobs.settings_file import SettingsError

    try:
        return settings.load(path)
    except SettingsError as exc:
        typer.echo(str(exc), err=True)
        raise typer.Exit(ExitCode.CONFIG_REFUSED) from exc


def _print_json(document: Any) -> None:
    import orjson

    options = orjson.OPT_INDENT_2 | orjson.OPT_SERIALIZE_NUMPY
    typer.echo(orjson.dumps(document, option=options).decode())


@app.command("list")
def list_(conf: Conf, as_json: AsJson = False) -> None:
    """List every feature with its stage, window, value and filter.

    Example: streamscore features list conf/fraud.yaml
    """
    from dataclasses import asdict

    from rich.table import Table

    from jobs.console import console
    from jobs.features.catalogue import describe

    described = describe(_settings(conf).schema_)
    if as_json:
        _print_json([asdict(d) for d in described])
        return
    table = Table("feature", "stage", "kind", "window", "of", "where", "delay")
    for d in described:
        kind = f"{d.aggregate} of {d.stream}" if d.kind == "window" else d.aggregate
        table.add_row(d.name, d.stage, kind, d.window, d.reads, d.where, d.delay)
    console.print(table)


@app.command("docs")
def docs(
    conf: Conf,
    format_: Annotated[
        Literal["md", "html"], typer.Option("--format", help="Markdown, or one HTML file.")
    ] = "md",
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Where to write it; default: print it.")
    ] = None,
) -> None:
    """Write a catalogue: each feature's meaning, unit, missing values, lateness and state.

    Example: streamscore features docs conf/fraud.yaml --format html --out features.html
    """
    from jobs.features.docs import FORMATS

    text = FORMATS[format_](_settings(conf))
    if out is None:
        typer.echo(text, nl=False)
        return
    try:
        out.write_text(text, encoding="utf-8")
    except OSError as exc:
        raise typer.BadParameter(f"cannot write {out}: {exc}", param_hint="--out") from exc
    typer.echo(f"wrote {out}")


@app.command("size")
def size(
    conf: Conf,
    keys: Annotated[int, typer.Option(min=1, help="Keys of each stage.")] = 100_000,
    per_day: Annotated[
        float,
        typer.Option(
            "--events-per-day-per-key", min=0.001, help="Events, and labels, of each key a day."
        ),
    ] = 10.0,
    as_json: AsJson = False,
) -> None:
    """Measure the memory of the features: fill real histories, pack them, and extrapolate.

    Example: streamscore features size conf/fraud.yaml --keys 50000 --events-per-day-per-key 7
    """
    from jobs.console import bars, console
    from jobs.features.size import measure
    from jobs.features.size_table import as_document, journal_table, size_table

    settings = _settings(conf)
    with bars() as progress:
        sizes, journals = measure(settings, per_day, progress)
    if as_json:
        _print_json(as_document(sizes, journals, keys))
        return
    console.print(size_table(sizes, keys, settings.flink.cached_entries * settings.batch.buckets))
    console.print(journal_table(journals))


@app.command("parity")
def parity(
    conf: Conf,
    limit: Annotated[
        int | None,
        typer.Option(min=1, help="Compare the newest so many predictions; all are recomputed."),
    ] = None,
    without_late: Annotated[
        bool,
        typer.Option(
            "--without-late",
            help="Leave out predictions that say late: their features are not promised exact.",
        ),
    ] = False,
    properties: Properties = None,
    as_json: AsJson = False,
) -> None:
    """Recompute every prediction's features from the topics and compare them; exit code 1 if not.

    Reads the events, labels and predictions that Kafka holds now, takes the events in the order
    of arrival that the predictions recorded, and says of each value that differs why.

    Example: streamscore features parity conf/fraud.yaml --limit 100000
    """
    from jobs.console import bars
    from jobs.features.parity import compare
    from jobs.features.parity_text import as_document, lines

    settings = _settings(conf)
    with bars() as progress:
        source = _source(settings, properties, progress)
        result = compare(settings, source, limit, progress, with_late=not without_late)
    if as_json:
        _print_json(as_document(result))
    else:
        for line in lines(result):
            typer.echo(line)
    if not result.is_equal:
        raise typer.Exit(ExitCode.FAILED)


@app.command("explain")
def explain(
    conf: Conf,
    event_id: Annotated[
        str, typer.Argument(metavar="ID", help="The event's id, or its prediction's.")
    ],
    feature: Annotated[
        str, typer.Option(help="Only this feature, with all its entries; default: all features.")
    ] = "",
    properties: Properties = None,
    as_json: AsJson = False,
) -> None:
    """Show which events made a prediction's features; exit code 1 if a value is not theirs.

    Example: streamscore features explain conf/fraud.yaml t0000059943 --feature card_mean_24h
    """
    from jobs.console import bars, console
    from jobs.features.explain import explained
    from jobs.features.explain_text import as_document, renderables

    settings = _settings(conf)
    if feature and feature not in settings.schema_.columns:
        known = ", ".join(settings.schema_.columns)
        raise typer.BadParameter(f"no {feature!r}; there are {known}", param_hint="--feature")
    with bars() as progress:
        source = _source(settings, properties, progress)
        found = explained(settings, source, event_id, feature)
    if found is None:
        typer.echo(f"no event {event_id!r} in {settings.topics.events}", err=True)
        raise typer.Exit(ExitCode.FAILED)
    if as_json:
        _print_json(as_document(found))
    else:
        for item in renderables(found, whole=bool(feature)):
            console.print(item)
    if not found.is_equal:
        raise typer.Exit(ExitCode.FAILED)


def _source(
    settings: Settings, properties: list[str] | None, progress: Callable[[str, float], None]
) -> Source:
    from jobs.features.topics import TopicError, read

    pairs = [text.partition("=") for text in properties or ()]
    if not all(name and equals for name, equals, _ in pairs):
        raise typer.BadParameter("write NAME=VALUE", param_hint="--kafka-property")
    try:
        return read(settings, {name: value for name, _, value in pairs}, progress)
    except TopicError as exc:
        typer.echo(str(exc), err=True)
        raise typer.Exit(ExitCode.FAILED) from exc
