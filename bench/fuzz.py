"""Try to bring the model server down: mutated bodies, connections that say nothing or too little.

Every answer must be a clean status: no INTERNAL, no 500, no lost connection, and a good request in
between is answered rightly. Its memory is sampled; at the end it must be what it was after the
first fifth, within 5 %. Prints a table and writes build/bench/fuzz.json.

Examples:
  python -m bench.fuzz --requests 5000
  python -m bench.fuzz --requests 100000 --seconds 600
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import random
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from typing import Any

import aiohttp
import grpc
import h2.connection
import numpy as np
import psutil

from bench import common
from bench.common import BENCH, Result, command_line, compared, say
from bench.lab import Child
from bench.serving import COLUMNS, MODEL, write_model
from model_server.oip import tensors as oip
from model_server.oip.messages import INFERENCE_SERVICE, message
from model_server.protos import (
    PREDICTION_SERVICE,
    ClassificationRequest,
    GetModelMetadataRequest,
    PredictRequest,
)
from model_server.tensors import to_proto

_TIMEOUT_S = 30.0
_AT_ONCE = 8
_IDLE_CONNECTIONS = 100
_FLAT = 0.05
_CLEAN_HTTP = frozenset({200, 400, 403, 404, 405, 413})
_UNCLEAN_GRPC = frozenset(
    {"INTERNAL", "UNKNOWN", "UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED", "DATA_LOSS"}
)
_NAMES = ("../bench", "..", "%2e%2e", "bench/../bench", "\x00", "a" * 10_000, "", "bench/1", "ß")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = command_line("fuzz", __doc__)
    add = found.add_argument
    add("--requests", type=int, default=100_000, help="mutated requests at least (%(default)s)")
    add("--seconds", type=float, default=0.0, help="go on for so long at least (%(default)s)")
    add("--seed", type=int, default=1, help="of the mutations (%(default)s)")
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Attack and print what came of it.

    Returns:
        Exit code: 0 if every answer was clean and the memory stayed flat.
    """
    options = parser().parse_args(argv)
    return common.guarded(lambda: _bench(options))


def _bench(options: argparse.Namespace) -> int:
    machine = common.machine()
    folder = BENCH / "fuzz"
    write_model(folder / "models" / MODEL / "1")
    arguments = ["--models-dir", str(folder / "models"), "--model-name", MODEL]
    arguments += ["--http-port", "0", "--max-message-bytes", "1000000"]
    with Child("server", "model_server", arguments, folder) as server:
        ports = _ports(server.line("ready "))
        attack = Attack(options, ports, psutil.Process(server.pid))
        asyncio.run(attack.run())
        server.check()
    document = {
        "machine": machine,
        "versions": common.versions(),
        "settings": {"changed": {}, "seed": options.seed, "seconds": attack.took_s},
        "runs": [{"name": name, "answers": dict(counts)} for name, counts in attack.counts.items()],
        "failures": attack.failures[:20],
    }
    return common.finish("fuzz", "Attacks on the model server", document, attack.results(),
                         quick=options.requests < 100_000)  # fmt: skip


def _ports(line: str) -> dict[str, int]:
    """The ports in ``ready port=1 http_port=2``."""
    return {k: int(v) for k, v in (part.split("=") for part in line.split()[1:])}


class Mutator:
    """Makes bad bodies of good ones."""

    def __init__(self, seed: int) -> None:
        """Draw from a generator of this seed."""
        self._random = random.Random(seed)

    def mutated(self, body: bytes) -> bytes:
        """Return a body with one to four changes."""
        changed = bytearray(body)
        for _ in range(self._random.randint(1, 4)):
            self._random.choice(
                (self._flip, self._insert, self._delete, self._cut, self._repeat, self._extreme)
            )(changed)
        return bytes(changed)

    def name(self) -> str:
        """Return a name that leads elsewhere, or nowhere."""
        return self._random.choice(_NAMES)

    def choose(self, choices: Sequence[Any]) -> Any:
        """Return one of several."""
        return self._random.choice(choices)

    def _at(self, body: bytearray) -> int:
        return self._random.randrange(len(body) + 1)

    def _flip(self, body: bytearray) -> None:
        if body:
            body[self._random.randrange(len(body))] ^= 1 << self._random.randrange(8)

    def _insert(self, body: bytearray) -> None:
        at = self._at(body)
        body[at:at] = self._random.randbytes(self._random.randint(1, 8))

    def _delete(self, body: bytearray) -> None:
        at = self._at(body)
        del body[at : at + self._random.randint(1, 8)]

    def _cut(self, body: bytearray) -> None:
        del body[self._at(body) :]

    def _repeat(self, body: bytearray) -> None:
        at = self._at(body)
        body[at:at] = body[at : at + self._random.randint(1, 64)]

    def _extreme(self, body: bytearray) -> None:
        at = self._at(body)
        words = (b"\xff" * 9 + b"\x01", b"\x00" * 8, b"\xff\xff\xff\x7f", b"1e999", b"-1", b"NaN",
                 b"9" * 30, b"[" * 300, b"null", b'"', b"{}", b"2147483648")  # fmt: skip
        body[at : at + self._random.randint(0, 8)] = self._random.choice(words)


class Attack:
    """Runs all attacks at once for a while, and keeps the answers."""

    def __init__(
        self, options: argparse.Namespace, ports: dict[str, int], process: psutil.Process
    ) -> None:
        """Attack a server's ports."""
        self._options = options
        self._ports = ports
        self._process = process
        self._mutator = Mutator(options.seed)
        self._rows = np.random.default_rng(0).normal(size=(4, COLUMNS)).astype(np.float32)
        self._bodies = _grpc_bodies(self._rows)
        self._documents = _http_bodies(self._rows)
        self.counts: dict[str, Counter[str]] = {}
        self.failures: list[str] = []
        self.memory_bytes: list[int] = []
        self.took_s = 0.0
        self._sent = 0

    async def run(self) -> None:
        """Attack until enough was sent and enough time has passed."""
        begun_s = time.perf_counter()
        target = f"127.0.0.1:{self._ports['port']}"
        base = f"http://127.0.0.1:{self._ports['http_port']}"
        async with grpc.aio.insecure_channel(target) as channel, aiohttp.ClientSession(base) as web:
            expected = await self._good(channel)
            async with contextlib.AsyncExitStack() as held:
                for port in self._ports.values():
                    for _ in range(_IDLE_CONNECTIONS):
                        await held.enter_async_context(_connection(port))
                slow = asyncio.create_task(self._slow_headers())
                while not self._enough(time.perf_counter() - begun_s):
                    await asyncio.gather(
                        *(self._grpc(channel) for _ in range(_AT_ONCE)),
                        *(self._http(web) for _ in range(_AT_ONCE)),
                        *([self._vanish(channel)] if self._sent % 50 < 2 * _AT_ONCE else []),
                    )
                    if self._sent % 1_000 < 2 * _AT_ONCE:
                        await self._look(channel, expected)
                slow.cancel()
                await asyncio.gather(slow, return_exceptions=True)
            await self._look(channel, expected)
        self.took_s = time.perf_counter() - begun_s

    def _enough(self, seconds: float) -> bool:
        return self._sent >= self._options.requests and seconds >= self._options.seconds

    async def _look(self, channel: Any, expected: bytes) -> None:
        """Ask something good, and sample the memory."""
        if await self._good(channel) != expected:
            self.failures.append("a good request got another answer than before")
        self.memory_bytes.append(self._process.memory_info().rss)
        if len(self.memory_bytes) % 10 == 0:
            say(f"{self._sent:,} requests, {self.memory_bytes[-1] / 2**20:.1f} MiB")

    async def _good(self, channel: Any) -> bytes:
        body = self._bodies[0][1]
        call = channel.unary_unary(f"/{PREDICTION_SERVICE}/Predict")
        return bytes(await call(body, timeout=_TIMEOUT_S))

    def _note(self, attack: str, answer: str, clean: bool, detail: str = "") -> None:
        self.counts.setdefault(attack, Counter())[answer] += 1
        if not clean:
            self.failures.append(f"{attack}: {answer} {detail}".strip()[:300])

    async def _grpc(self, channel: Any) -> None:
        self._sent += 1
        path, body = self._mutator.choose(self._bodies)
        try:
            await channel.unary_unary(path)(self._mutator.mutated(body), timeout=_TIMEOUT_S)
            self._note("grpc", "OK", True)
        except grpc.aio.AioRpcError as exc:
            code, details = exc.code().name, exc.details() or ""
            self._note("grpc", code, code not in _UNCLEAN_GRPC, details)

    async def _http(self, web: aiohttp.ClientSession) -> None:
        self._sent += 1
        path, body, headers = self._mutator.choose(self._documents)
        if self._sent % 10 == 0:
            path = path.replace(MODEL, self._mutator.name())
        body = self._mutator.mutated(body)
        try:
            async with web.post(
                path, data=body, headers=headers, timeout=aiohttp.ClientTimeout(_TIMEOUT_S)
            ) as response:
                text = await response.text(errors="replace")
                clean = response.status in _CLEAN_HTTP
                self._note("http", str(response.status), clean, text)
        except (aiohttp.ClientError, TimeoutError) as exc:
            self._note("http", type(exc).__name__, False, str(exc))

    async def _vanish(self, channel: Any) -> None:
        """Leave in the middle of a call, and in the middle of a body."""
        request = PredictRequest.FromString(self._bodies[0][1])
        request.model_spec.signature_name = "explain"
        call = channel.unary_unary(f"/{PREDICTION_SERVICE}/Predict")(request.SerializeToString())
        await asyncio.sleep(0)
        call.cancel()
        for size in (2**31, 500_000):  # declared; one of them is refused, the other never comes
            async with _connection(self._ports["http_port"]) as (_, writer):
                head = f"POST /v1/models/{MODEL}:predict HTTP/1.1\r\nHost: x\r\n"
                writer.write(f"{head}Content-Length: {size}\r\n\r\n{{".encode())
                with contextlib.suppress(ConnectionError):
                    await writer.drain()
        self._note("vanish", "gone", True)
        await self._huge_frame()

    async def _huge_frame(self) -> None:
        """Declare a gRPC message of 2 GB and send none of it."""
        async with _connection(self._ports["port"]) as (reader, writer):
            client = h2.connection.H2Connection()
            client.initiate_connection()
            path = f"/{PREDICTION_SERVICE}/Predict"
            pseudo = {":method": "POST", ":scheme": "http", ":authority": "x", ":path": path}
            headers = pseudo | {"content-type": "application/grpc", "te": "trailers"}
            client.send_headers(1, list(headers.items()))
            client.send_data(1, b"\0" + (2**31 - 1).to_bytes(4, "big"))
            writer.write(client.data_to_send())
            answer: dict[str, str] = {}
            try:
                async with asyncio.timeout(_TIMEOUT_S):
                    while "grpc-status" not in answer and (data := await reader.read(65_536)):
                        for event in client.receive_data(data):
                            for name, value in getattr(event, "headers", None) or ():
                                answer[_text(name)] = _text(value)
            except (TimeoutError, ConnectionError) as exc:
                answer = {"grpc-message": type(exc).__name__}
            status = answer.get("grpc-status", "none")
            clean = status == str(grpc.StatusCode.RESOURCE_EXHAUSTED.value[0])
            self._note("huge frame", status, clean, answer.get("grpc-message", ""))

    async def _slow_headers(self) -> None:
        """Send a request's head one byte at a time, on many connections, and again when cut off."""
        head = f"POST /v1/models/{MODEL}:predict HTTP/1.1\r\nX-Slow: ".encode()

        async def one() -> None:
            while True:
                async with _connection(self._ports["http_port"]) as (_, writer):
                    for index in itertools.count():
                        if writer.is_closing():
                            self._note("slow head", "cut off", True)
                            break
                        writer.write(head[index : index + 1] or b"x")
                        await asyncio.sleep(0.1)

        async with asyncio.TaskGroup() as slow:
            for _ in range(_IDLE_CONNECTIONS):
                slow.create_task(one())

    def results(self) -> list[Result]:
        """The headline figures."""
        early = self.memory_bytes[len(self.memory_bytes) // 5]
        late = max(self.memory_bytes[-max(1, len(self.memory_bytes) // 5) :])
        growth = late / early
        if self.took_s >= 60 and growth > 1 + _FLAT:
            self.failures.append(f"memory grew to {growth:.3f} of what it was")
        mebibyte = 2**20
        return [
            compared("requests", float(self._sent), "requests", None),
            compared("unclean", float(len(self.failures)), "answers", None),
            compared("memory", late / mebibyte, "MiB", early / mebibyte, "baseline: after a fifth"),
        ]


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _grpc_bodies(rows: np.ndarray[Any, Any]) -> list[tuple[str, bytes]]:
    predict = PredictRequest()
    predict.model_spec.name = MODEL
    predict.inputs["inputs"].CopyFrom(to_proto(rows))
    classify = ClassificationRequest()
    classify.model_spec.name = MODEL
    example = classify.input.example_list.examples.add()
    for column in range(COLUMNS):
        example.features.feature[f"f{column}"].float_list.value.append(float(column))
    metadata = GetModelMetadataRequest(metadata_field=["signature_def"])
    metadata.model_spec.name = MODEL
    raw = message("ModelInferRequest")(model_name=MODEL, raw_input_contents=[oip.to_raw(rows)])
    raw.inputs.add(name="inputs", datatype="FP32", shape=rows.shape)
    contents = message("ModelInferRequest")(model_name=MODEL, model_version="1")
    oip.fill_contents(contents.inputs.add(name="inputs"), rows)
    bodies: list[tuple[str, Any]] = [
        (f"/{PREDICTION_SERVICE}/Predict", predict),
        (f"/{PREDICTION_SERVICE}/Classify", classify),
        (f"/{PREDICTION_SERVICE}/GetModelMetadata", metadata),
        (f"/{INFERENCE_SERVICE}/ModelInfer", raw),
        (f"/{INFERENCE_SERVICE}/ModelInfer", contents),
    ]
    return [(path, body.SerializeToString()) for path, body in bodies]


def _http_bodies(rows: np.ndarray[Any, Any]) -> list[tuple[str, bytes, dict[str, str]]]:
    tensor = {"name": "inputs", "datatype": "FP32", "shape": list(rows.shape)}
    as_json = {"id": "1", "inputs": [tensor | {"data": rows.tolist()}]}
    data = oip.to_raw(rows)
    as_binary = {"inputs": [tensor | {"parameters": {"binary_data_size": len(data)}}]}
    head = json.dumps(as_binary).encode()
    examples = [{f"f{column}": 1.0 for column in range(COLUMNS)}]
    predict = f"/v1/models/{MODEL}:predict"
    return [
        (predict, json.dumps({"instances": rows.tolist()}).encode(), {}),
        (predict, json.dumps({"inputs": {"inputs": rows.tolist()}}).encode(), {}),
        (f"/v1/models/{MODEL}:classify", json.dumps({"examples": examples}).encode(), {}),
        (f"/v2/models/{MODEL}/infer", json.dumps(as_json).encode(), {}),
        (
            f"/v2/models/{MODEL}/infer",
            head + data,
            {"Inference-Header-Content-Length": str(len(head))},
        ),
        ("/v2/repository/index", b'{"ready": true}', {}),
        (f"/v2/repository/models/{MODEL}/load", b"", {}),
    ]


@contextlib.asynccontextmanager
async def _connection(
    port: int,
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError, OSError):
            await writer.wait_closed()


if __name__ == "__main__":
    sys.exit(main())
