"""``streamscore config``: a settings file, checked and shown."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from jobs.options import DEFAULT_CONFIG, ConfigFile
from jobs.options import loaded as _settings
from jobs.options import refusing as _refusing

if TYPE_CHECKING:
    pass

app = typer.Typer(help="A job's settings file.", no_args_is_help=True)


@app.command("check")
def config_check(conf: ConfigFile = DEFAULT_CONFIG) -> None:
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


@app.command("show")
def config_show(
    conf: ConfigFile = DEFAULT_CONFIG,
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
