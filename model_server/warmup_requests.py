"""TensorFlow Serving's warm-up requests: ``assets.extra/tf_serving_warmup_requests``.

A TFRecord file of PredictionLog messages, which lies in a SavedModel's folder; here any kind of
model may have one. A record is its length (8 bytes), a checksum of that (4), the message, and a
checksum of the message (4); see TensorFlow's TFRecord format. Checksums are CRC-32C, which Python
does not have, and are not checked: a damaged record is no message of its type.
"""

from __future__ import annotations

import logging
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError

from model_server.backends.base import PREDICT_SIGNATURE, Model, checked_inputs
from model_server.calls import check_outputs
from model_server.errors import ModelError, ModelServerError
from model_server.protos import prediction_log
from model_server.tensors import from_proto

__all__ = ["FILE", "replay"]

logger = logging.getLogger(__name__)

FILE = Path("assets.extra") / "tf_serving_warmup_requests"
_MOST_RECORDS = 1_000
"""TensorFlow Serving takes as many."""
_LENGTH = struct.Struct("<Q")
_CHECKSUM_BYTES = 4


def replay(model: Model, version_dir: Path) -> int:
    """Run the Predict requests of a version's file, if it has one; return how many.

    Requests of other calls are left out. One that the model refuses makes the version a broken one,
    as with TensorFlow Serving.

    Raises:
        ModelError: The file is damaged, or the model refuses a request.
    """
    path = version_dir / FILE
    if not path.is_file():
        return 0
    log_class = prediction_log()
    done = left_out = 0
    for number, record in enumerate(_records(path)):
        log = log_class()
        try:
            log.ParseFromString(record)
            if log.WhichOneof("log_type") != "predict_log":
                left_out += 1
                continue
            _run(model, log.predict_log.request)
        except (DecodeError, ModelServerError) as exc:
            raise ModelError(f"{path}: request {number} failed: {exc}") from exc
        done += 1
    logger.info("event=warmed_up requests=%d left_out=%d", done, left_out)
    return done


def _records(path: Path) -> Iterator[bytes]:
    content = path.read_bytes()
    at = 0
    for _ in range(_MOST_RECORDS):
        if at == len(content):
            return
        begin = at + _LENGTH.size + _CHECKSUM_BYTES
        if begin > len(content):
            raise ModelError(f"{path} is damaged at byte {at}")
        (length,) = _LENGTH.unpack_from(content, at)
        at = begin + length + _CHECKSUM_BYTES
        if at > len(content):
            raise ModelError(f"{path} is damaged at byte {begin}")
        yield content[begin : begin + length]
    if at != len(content):
        raise ModelError(f"{path} has more than {_MOST_RECORDS} requests")


def _run(model: Model, request: Any) -> None:
    name = request.model_spec.signature_name or PREDICT_SIGNATURE
    signature = model.signatures.get(name)
    if signature is None:
        raise ModelError(f'no signature "{name}"')
    wanted = check_outputs(signature, list(request.output_filter))
    arrays = {alias: from_proto(proto) for alias, proto in request.inputs.items()}
    model.run(name, checked_inputs(signature, arrays), wanted)
