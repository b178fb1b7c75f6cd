"""TensorFlow Serving's warm-up files."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model_server import warmup_requests
from model_server.backends.xgboost import XGBoostModel
from model_server.errors import ModelError
from model_server.protos import prediction_log
from tests.support.models import xgboost_folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    xgboost_folder(tmp_path / "1")
    (tmp_path / "1" / "assets.extra").mkdir()
    return tmp_path / "1"


def record(request: Any) -> bytes:
    log = prediction_log()()
    log.predict_log.request.CopyFrom(request)
    content = log.SerializeToString()
    return struct.pack("<Q", len(content)) + bytes(4) + content + bytes(4)


def replay(folder: Path, content: bytes) -> int:
    (folder / warmup_requests.FILE).write_bytes(content)
    return warmup_requests.replay(XGBoostModel.load(folder), folder)


@pytest.fixture
def good(predict_request: Any) -> bytes:
    return record(predict_request(np.zeros((1, 5), np.float32)))


def test_as_many_as_tensorflow_serving_takes(folder: Path, good: bytes) -> None:
    assert replay(folder, b"") == 0
    assert replay(folder, good * 1_000) == 1_000
    with pytest.raises(ModelError, match="more than 1000"):
        replay(folder, good * 1_001)


def test_damaged_files_and_refused_requests_say_where(
    folder: Path, good: bytes, predict_request: Any
) -> None:
    for cut in (5, 20, len(good) - 1):
        with pytest.raises(ModelError, match="damaged at byte"):
            replay(folder, good + good[:cut])
    wrong = record(predict_request(np.zeros((1, 4), np.float32)))
    with pytest.raises(ModelError, match="request 1 failed"):
        replay(folder, good + wrong)
    with pytest.raises(ModelError, match="request 0 failed"):
        replay(folder, struct.pack("<Q", 3) + bytes(4) + b"\xff\xff\xff" + bytes(4))
