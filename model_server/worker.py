"""One of several processes that share a server's ports; ``supervisor`` starts and asks it.

It loads the models before it opens a port: a connection shall never come to a process that cannot
answer yet while another one could. It drains and ends on SIGTERM, and when the supervisor is gone.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from typing import Any

from model_server import logs
from model_server.lifecycle import ModelConfig
from model_server.options import ServerOptions
from model_server.server import ModelServer
from model_server.worker_channel import answer_forever
from model_server.worker_reports import ModelReport, report

__all__ = ["main"]


class _Worker:
    """What the supervisor may ask for."""

    def __init__(self) -> None:
        self._server: ModelServer | None = None

    @property
    def server(self) -> ModelServer:
        assert self._server is not None, "the first question is prepare"
        return self._server

    async def prepare(self, options: ServerOptions, models: tuple[ModelConfig, ...]) -> None:
        logs.configure(options.log_format)
        self._server = ModelServer(options, models=models)
        await self.server.load_models()

    async def open(self) -> None:
        await self.server.listen()
        await self.server.load()

    async def load(self, config: ModelConfig) -> None:
        await self.server.manager.load(config)

    async def unload(self, name: str) -> bool:
        return await self.server.manager.unload(name)

    async def configure(self, configs: tuple[ModelConfig, ...]) -> None:
        await self.server.manager.configure(configs)

    async def report(self) -> dict[str, ModelReport]:
        return report(self.server.servables)

    async def metrics(self) -> bytes:
        return self.server.metrics.exposed()

    async def stop(self) -> None:
        if self._server is not None:
            await self._server.stop()

    def answers(self) -> dict[str, Any]:
        names = ("prepare", "open", "load", "unload", "configure", "report", "metrics")
        return {name: getattr(self, name) for name in names}


async def _work(connection: socket.socket) -> None:
    worker, stop_asked = _Worker(), asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stop_asked.set)
    # Ctrl-C reaches every process of the terminal: the supervisor sends SIGTERM then.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    answering = asyncio.create_task(answer_forever(connection, worker.answers()))
    stopping = asyncio.create_task(stop_asked.wait())
    await asyncio.wait({answering, stopping}, return_when=asyncio.FIRST_COMPLETED)
    answering.cancel()
    await asyncio.gather(answering, return_exceptions=True)
    await worker.stop()


def main(argv: list[str]) -> int:
    """Serve for the supervisor at the other end of a socket.

    Args:
        argv: The socket's number, and the user's PYTHONPATH.

    Returns:
        0 after a drain.
    """
    # This one's is the supervisor's whole path, which is not for models of another interpreter.
    os.environ["PYTHONPATH"] = argv[1]
    asyncio.run(_work(socket.socket(fileno=int(argv[0]))))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
