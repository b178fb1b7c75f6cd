"""`streamscore serve`: the model server with a job's settings."""

from __future__ import annotations

import logging

import typer

from jobs.settings import Settings
from model_server.server import ServerOptions
from model_server.server import serve as serve_model


def options(
    settings: Settings, *, host: str = "", port: int | None = None, version: int | None = None
) -> ServerOptions:
    """The model server's options for a job; what is given here wins over the settings."""
    model = settings.model
    configured_host, _, configured_port = model.server.rpartition(":")
    return ServerOptions(
        models_dir=model.path,
        model_name=model.name,
        model_version=version if version is not None else model.version,
        host=host or configured_host,
        port=port if port is not None else int(configured_port),
    )


def serve(
    settings: Settings, *, host: str = "", port: int | None = None, version: int | None = None
) -> int:
    """Serve until SIGTERM or SIGINT; returns the exit code.

    Prints ``ready port=<port>`` once the model is warm.
    """
    logging.basicConfig(
        level=logging.INFO, format="time=%(asctime)s level=%(levelname)s %(message)s"
    )
    chosen = options(settings, host=host, port=port, version=version)
    return serve_model(chosen, on_ready=lambda at: typer.echo(f"ready port={at}"))
