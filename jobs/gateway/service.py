"""`streamscore gateway`: runs until SIGTERM or Ctrl-C, then lets requests at work end."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable

import typer

from jobs.gateway.app import OPEN_PATHS, Gateway
from jobs.gateway.exchange import Exchange
from jobs.settings import Settings
from jobs.settings_file import SettingsError
from model_server.web import HttpServer
from udfs.enrichment.table_sources import KafkaAccess
from udfs.ranking.popular_feed import PopularFeed
from udfs.runtime import calm_garbage_collector, share_interpreter_fairly

__all__ = ["serve"]

_LOAD_S = 5.0
_CHECK_S = 2.0
_CONNECTION_S = 60.0


def serve(settings: Settings) -> int:
    """Serve until SIGTERM or SIGINT; returns the exit code.

    Prints ``ready port=<port>`` once requests are taken.

    Raises:
        SettingsError: they are no ranking job's.
        NotReadyError: Kafka or a topic is missing.
    """
    if settings.ranking is None:
        raise SettingsError("the settings have no ranking section: the gateway is a ranking job's")
    asyncio.run(_serve(settings, lambda port: typer.echo(f"ready port={port}")))
    return 0


async def _serve(settings: Settings, on_ready: Callable[[int], None]) -> None:
    chosen, kafka = settings.gateway, settings.kafka
    assert settings.topics.popularity is not None
    login = kafka.python_properties()
    access = KafkaAccess(kafka.bootstrap_servers, tuple(login.items()))
    properties = {"bootstrap.servers": kafka.bootstrap_servers, **login}
    exchange = Exchange(properties, settings.topics.events, settings.topics.predictions)
    popular = PopularFeed(settings.topics.popularity, access)
    gateway = Gateway(chosen, exchange, popular.items.top)
    server = HttpServer(
        gateway.routes(),
        max_message_bytes=chosen.max_body_bytes,
        grace_s=chosen.drain / 1_000,
        timeout_s=_CONNECTION_S,
        token=chosen.token,
        open_paths=OPEN_PATHS,
    )
    exchange.start()
    popular.start()
    await asyncio.to_thread(popular.wait_loaded, _LOAD_S)
    try:
        # Replies are read in a thread beside the loop.
        share_interpreter_fairly()
        calm_garbage_collector()
        port = await server.listen(chosen.host, chosen.port)
        on_ready(port)
        await _until_told(exchange)
        gateway.draining = True
    finally:
        await server.stop()
        left = await asyncio.to_thread(exchange.close, chosen.drain / 1_000)
        await asyncio.to_thread(popular.stop)
    if left:
        typer.echo(f"{left} events were not written: Kafka did not answer", err=True)


async def _until_told(exchange: Exchange) -> None:
    told = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, told.set)
    while not told.is_set():
        await asyncio.to_thread(exchange.check)
        try:
            async with asyncio.timeout(_CHECK_S):
                await told.wait()
        except TimeoutError:
            continue
