"""`streamscore serve`: the model server with a job's settings."""

from __future__ import annotations

import typer

from jobs.settings import Settings
from model_server import logs
from model_server.options import ServerOptions
from model_server.server import serve as serve_model


def options(
    settings: Settings,
    *,
    host: str = "",
    port: int | None = None,
    version: int | None = None,
    workers: int = 1,
) -> ServerOptions:
    """The model server's options for a job; what is given here wins over the settings."""
    model = settings.model
    configured_host, _, configured_port = model.server.partition(",")[0].strip().rpartition(":")
    return ServerOptions.of_one_model(
        model.path,
        model.name,
        version if version is not None else model.version,
        host=host or configured_host,
        port=port if port is not None else int(configured_port),
        workers=workers,
    )


def serve(chosen: ServerOptions) -> int:
    """Serve until SIGTERM or SIGINT; returns the exit code.

    Prints ``ready port=<port>``, and the other ports that are open, once the models are warm.
    """
    logs.configure(chosen.log_format)
    return serve_model(chosen, on_ready=lambda ports: typer.echo(f"ready {ports}"))
