"""Questions of a supervisor to its worker processes, over a pair of sockets that only both have.

Messages are pickles: both ends are this package, and nobody else can reach them.
"""

from __future__ import annotations

import asyncio
import logging
import pickle
import socket
import struct
from collections.abc import Awaitable, Callable
from itertools import count
from typing import Any, Self

from model_server.errors import ModelServerError, ServableNotReady

__all__ = ["Asker", "answer_forever"]

logger = logging.getLogger(__name__)

_LENGTH = struct.Struct("<Q")

Answer = Callable[..., Awaitable[Any]]


async def _read(reader: asyncio.StreamReader) -> Any:
    (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
    return pickle.loads(await reader.readexactly(length))  # noqa: S301 (from our own child)


def _write(writer: asyncio.StreamWriter, message: Any) -> None:
    content = pickle.dumps(message)
    writer.write(_LENGTH.pack(len(content)) + content)


class Asker:
    """The supervisor's end: any number of questions at once."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Ask over an open connection; see ``over``."""
        self._writer = writer
        self._numbers = count()
        self._open: dict[int, asyncio.Future[Any]] = {}
        self._reading = asyncio.create_task(self._read_answers(reader))

    @classmethod
    async def over(cls, connection: socket.socket) -> Self:
        """Ask over a socket, which is then this one's."""
        return cls(*await asyncio.open_connection(sock=connection))

    async def ask(self, name: str, *arguments: Any) -> Any:
        """Have the worker do something and return what it returned.

        Raises:
            ModelServerError: As there.
            ServableNotReady: It ended before it answered.
        """
        if self._reading.done():
            raise ServableNotReady("a worker process has ended")
        number = next(self._numbers)
        answer = self._open[number] = asyncio.get_running_loop().create_future()
        _write(self._writer, (number, name, arguments))
        try:
            return await answer
        finally:
            del self._open[number]

    async def _read_answers(self, reader: asyncio.StreamReader) -> None:
        try:
            while True:
                number, result = await _read(reader)
                answer = self._open.get(number)
                if answer is None or answer.done():
                    continue
                if isinstance(result, Exception):
                    answer.set_exception(result)
                else:
                    answer.set_result(result)
        except (asyncio.IncompleteReadError, ConnectionError):
            for answer in self._open.values():
                if not answer.done():
                    answer.set_exception(ServableNotReady("a worker process has ended"))

    async def close(self) -> None:
        """Hang up, which ends a worker that is still there."""
        self._writer.close()
        self._reading.cancel()
        await asyncio.gather(self._reading, return_exceptions=True)


async def answer_forever(connection: socket.socket, answers: dict[str, Answer]) -> None:
    """The worker's end: answer until the supervisor hangs up or has ended.

    Args:
        connection: Is this one's from now on.
        answers: What there is to ask for. Questions are answered side by side.
    """
    reader, writer = await asyncio.open_connection(sock=connection)

    async def answer(number: int, name: str, arguments: tuple[Any, ...]) -> None:
        result: Any
        try:
            result = await answers[name](*arguments)
        except ModelServerError as exc:
            result = exc
        except Exception as exc:
            logger.exception("event=answer_failed question=%s", name)
            result = ModelServerError(f"{type(exc).__name__}: {exc}")
        _write(writer, (number, result))

    async with asyncio.TaskGroup() as answering:
        try:
            while True:
                answering.create_task(answer(*await _read(reader)))
        except (asyncio.IncompleteReadError, ConnectionError):
            return
