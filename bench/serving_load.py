"""Closed-loop clients of a model server; a process of its own, the same for every server.

Each client has a connection, sends a request, waits for the answer and sends the next. Prints one
JSON object: calls, seconds, and the percentiles of a call in milliseconds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Sequence

import grpc
import numpy as np

from bench.common import percentiles
from model_server.oip import tensors
from model_server.oip.messages import message, stub


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(prog="python -m bench.serving_load", description=__doc__)
    add = found.add_argument
    add("--target", required=True, help="host:port, gRPC")
    add("--model", required=True, help="its name")
    add("--columns", type=int, required=True, help="columns of a row")
    add("--rows", type=int, required=True, help="rows of a request")
    add("--clients", type=int, required=True, help="how many at once")
    add("--warm-s", type=float, default=2.0, help="seconds that are not counted (%(default)s)")
    add("--seconds", type=float, default=5.0, help="seconds that are (%(default)s)")
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Run the clients and print what they saw."""
    options = parser().parse_args(argv)
    times_ms, seconds = asyncio.run(_run(options))
    print(json.dumps({"calls": len(times_ms), "seconds": seconds} | percentiles(times_ms)))
    return 0


async def _run(options: argparse.Namespace) -> tuple[list[float], float]:
    begins_s = time.perf_counter() + options.warm_s
    ends_s = begins_s + options.seconds
    clients = [_client(options, seed, begins_s, ends_s) for seed in range(options.clients)]
    return [t for times in await asyncio.gather(*clients) for t in times], options.seconds


async def _client(
    options: argparse.Namespace, seed: int, begins_s: float, ends_s: float
) -> list[float]:
    rows = np.random.default_rng(seed).normal(size=(options.rows, options.columns))
    request = message("ModelInferRequest")(
        model_name=options.model, raw_input_contents=[tensors.to_raw(rows.astype(np.float32))]
    )
    request.inputs.add(name="inputs", datatype="FP32", shape=rows.shape)
    times_ms = []
    own = [("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.insecure_channel(options.target, options=own) as channel:
        infer = stub(channel, "ModelInfer")
        while (sent_s := time.perf_counter()) < ends_s:
            answer = await infer(request)
            answered_s = time.perf_counter()
            if answer.outputs[0].shape[0] != options.rows:
                raise AssertionError(f"{answer.outputs[0].shape} for {options.rows} rows")
            if begins_s <= sent_s and answered_s <= ends_s:
                times_ms.append((answered_s - sent_s) * 1e3)
    return times_ms


if __name__ == "__main__":
    sys.exit(main())
