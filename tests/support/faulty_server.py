"""A grpc.aio server of the Predict API that misbehaves as the last line on stdin says.

Started as a script with a port; prints ``ready port=N``, then each behaviour once it is in force.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import grpc
import numpy as np

from model_server.protos import PredictionServiceServicer, PredictResponse, add_prediction_service
from model_server.tensors import from_proto, to_proto

SLOW_S = 30.0
_BUSY_S_PER_ROW = 0.002
_REFUSALS = {
    "exhausted": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "invalid": grpc.StatusCode.INVALID_ARGUMENT,
    "broken": grpc.StatusCode.INTERNAL,
}


class Faulty(PredictionServiceServicer):
    """Half a point for every row, unless told otherwise."""

    def __init__(self) -> None:
        self.behaviour = "well"
        self._one = asyncio.Lock()

    async def Predict(self, request: Any, context: Any) -> Any:
        how = self.behaviour
        if how in _REFUSALS:
            await context.abort(_REFUSALS[how], "as told")
        if how == "slow":
            await asyncio.sleep(SLOW_S)
        rows = from_proto(request.inputs["inputs"])
        if how == "busy":  # one row after the other, whoever asks
            async with self._one:
                await asyncio.sleep(_BUSY_S_PER_ROW * len(rows))
        name = "other" if how == "wrong_model" else "fraud"
        if request.model_spec.signature_name == "explain":
            return _response(name, "contributions", np.zeros_like(rows))
        return _response(name, "scores", _scores(how, len(rows)))


def _scores(how: str, rows: int) -> np.ndarray:
    wrong = {"nan": np.nan, "above_one": 1.5, "below_zero": -0.25}
    count = rows + (how == "more_rows") - (how == "fewer_rows")
    return np.full(count, wrong.get(how, 0.5), np.float32)


def _response(name: str, output: str, values: np.ndarray) -> Any:
    response = PredictResponse()
    response.model_spec.name = name
    response.model_spec.version.value = 9
    response.outputs[output].CopyFrom(to_proto(values))
    return response


async def main() -> None:
    faulty = Faulty()
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    add_prediction_service(faulty, server)
    port = server.add_insecure_port(f"127.0.0.1:{sys.argv[1]}")
    await server.start()
    print(f"ready port={port}", flush=True)
    while line := await asyncio.to_thread(sys.stdin.readline):
        faulty.behaviour = line.strip()
        print(faulty.behaviour, flush=True)
    await server.stop(None)


if __name__ == "__main__":
    asyncio.run(main())
