"""A TCP link that can be cut, be silent or be slow: a process of its own, at loopback only.

As a script: ``python -m jobs.chaos.proxy PORT TO_PORT`` listens, prints ``ready port=N`` and obeys
lines of its standard input, each answered by ``ok``: ``pass``, ``cut``, ``silent``, ``slow MS``. It
ends when its input ends, so never outlives who started it.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import subprocess
import sys
from contextlib import suppress
from typing import Self

from jobs.environment import ROOT, NotReadyError
from jobs.ports import HOST

_PIECE_BYTES = 65_536
_STOP_S = 5.0


class Proxy:
    """Passes bytes on between its clients and a port.

    Args:
        to_port: Where they go.
    """

    def __init__(self, to_port: int) -> None:
        self._to_port = to_port
        self._is_cut = False
        self._delay_s = 0.0
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._open: set[asyncio.StreamWriter] = set()

    def obey(self, line: str) -> None:
        """Be as a line says; one that is none of those known passes everything."""
        name, _, number = line.strip().partition(" ")
        self._is_cut = name == "cut"
        self._delay_s = float(number) / 1_000 if name == "slow" else 0.0
        if name == "silent":
            self._flowing.clear()
        else:
            self._flowing.set()
        if self._is_cut:
            for writer in self._open:
                _reset(writer)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """A client's connection, until either side ends it."""
        if self._is_cut:
            _reset(writer)
            return
        try:
            there_reader, there_writer = await asyncio.open_connection(HOST, self._to_port)
        except OSError:
            _reset(writer)
            return
        both = {writer, there_writer}
        self._open |= both
        try:
            await asyncio.gather(self._pipe(reader, there_writer), self._pipe(there_reader, writer))
        finally:
            self._open -= both
            for one in both:
                one.close()

    async def _pipe(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while piece := await reader.read(_PIECE_BYTES):
                await self._flowing.wait()
                if self._delay_s:
                    await asyncio.sleep(self._delay_s)
                writer.write(piece)
                await writer.drain()
        writer.close()


def _reset(writer: asyncio.StreamWriter) -> None:
    """End a connection as a lost one: the other side gets an error, not the end of a stream."""
    end = writer.get_extra_info("socket")
    with suppress(OSError):  # it has ended by itself
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def _main(port: int, to_port: int) -> None:
    proxy = Proxy(to_port)
    server = await asyncio.start_server(proxy.serve, HOST, port)
    print(f"ready port={server.sockets[0].getsockname()[1]}", flush=True)
    orders = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(orders), sys.stdin)
    while line := await orders.readline():
        proxy.obey(line.decode())
        print("ok", flush=True)


class Link:
    """A ``Proxy`` in a process of its own; a context manager that ends it.

    Args:
        to_port: Where its bytes go, a port of this machine.
        port: Where it listens; 0 takes a free one.
    """

    def __init__(self, to_port: int, port: int = 0) -> None:
        self._to_port = to_port
        self.port = port
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        """host:port for clients."""
        return f"{HOST}:{self.port}"

    def __enter__(self) -> Self:
        command = [sys.executable, "-m", "jobs.chaos.proxy", str(self.port), str(self._to_port)]
        self._process = subprocess.Popen(
            command,
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for us, who heal first
        )
        line = self._line()
        if not line.startswith("ready port="):
            self._end()
            raise NotReadyError(f"no proxy listens on port {self.port}", "see the error above")
        self.port = int(line.partition("=")[2])
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def be(self, how: str) -> None:
        """Obey one of the proxy's lines; returns when it does."""
        process = self._process
        assert process is not None
        assert process.stdin is not None
        process.stdin.write(f"{how}\n".encode())
        process.stdin.flush()
        if self._line() != "ok":
            raise NotReadyError(f"the proxy on port {self.port} ended", "run it again")

    def _line(self) -> str:
        assert self._process is not None
        assert self._process.stdout is not None
        return self._process.stdout.readline().decode().strip()

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait(_STOP_S)
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with suppress(BrokenPipeError):
                    pipe.close()


if __name__ == "__main__":
    asyncio.run(_main(int(sys.argv[1]), int(sys.argv[2])))
