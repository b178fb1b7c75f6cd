"""What the commands share: a settings file, its overrides, and how a refused one ends."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jobs.exit_codes import ExitCode

if TYPE_CHECKING:
    from jobs.settings import Settings

ConfigFile = Annotated[Path, typer.Argument(metavar="CONF", help="The job's settings file.")]
Config = Annotated[Path, typer.Option("--config", "-c", help="The job's settings file.")]
DEFAULT_CONFIG = Path("conf/fraud.yaml")
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="Override a setting; may be repeated."),
]


@contextmanager
def refusing() -> Iterator[None]:
    """End with its exit code if a settings file is refused."""
    from jobs.settings_file import SettingsError

    try:
        yield
    except SettingsError as exc:
        typer.echo(str(exc), err=True)
        raise typer.Exit(ExitCode.CONFIG_REFUSED) from exc


def loaded(path: Path, changes: Sequence[str] | None = None) -> Settings:
    """The settings of a file; a refused one ends the command."""
    from jobs import settings

    with refusing():
        return settings.load(path, changes_of(changes))


def changes_of(texts: Sequence[str] | None) -> dict[str, Any]:
    """Overrides by dotted name."""
    return dict(map(change, texts or ()))


def change(text: str) -> tuple[str, Any]:
    """``dotted.key=value`` as the key and the value, which is read as YAML reads it."""
    import yaml

    name, equals, value = text.partition("=")
    if not name or not equals:
        raise typer.BadParameter(f"{text!r} is not NAME=VALUE", param_hint="--set")
    try:
        return name, yaml.safe_load(value)
    except yaml.YAMLError as exc:
        raise typer.BadParameter(f"{value!r} is not YAML", param_hint="--set") from exc
