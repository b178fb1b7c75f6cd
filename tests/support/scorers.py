"""A small model over the columns of ``streams``, and what scores with it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import xgboost

from model_server.client import ClientOptions
from tests.support.held import HeldScoring, Switch
from tests.support.streams import SCHEMA
from udfs.batches.categories import code_of
from udfs.batches.records import RecordWriter
from udfs.definition.schema import Schema
from udfs.preparation.encoders import OneHot
from udfs.preparation.preparation import Input, Preparation
from udfs.scoring.output import Output
from udfs.scoring.served import ServedScoring


def prepared(schema: Schema = SCHEMA) -> Preparation:
    """Each feature has its own imputed value; some terminals are known."""
    texts = ("t0", "t1", "t2")
    known = OneHot(texts=texts, codes=tuple(map(code_of, texts)), other=True)
    inputs = [
        Input(name=name, impute=float(n), indicator=name == "lat")
        for n, name in enumerate(schema.columns)
    ]
    at = schema.columns.index("at")
    inputs[at] = Input(name="at", encoding=known, indicator=True)
    return Preparation(inputs)


def write_model(models_dir: Path, preparation: Preparation) -> Path:
    columns = list(preparation.columns)
    rows = np.random.default_rng(2).random((300, len(columns))).astype(np.float32) * 20
    target = (rows[:, 0] > 5).astype(int)
    matrix = xgboost.DMatrix(rows, target, feature_names=columns)
    params = {"objective": "binary:logistic", "max_depth": 2, "nthread": 1, "eta": 1.0}
    folder = models_dir / "fraud" / "7"
    folder.mkdir(parents=True)
    xgboost.train(params, matrix, num_boost_round=3).save_model(folder / "model.ubj")
    (folder / "features.json").write_text(json.dumps(preparation.document()))
    return models_dir


def output_of(schema: Schema, models_dir: Path) -> Output:
    columns = schema.columns
    preparation = Preparation.load(models_dir / "fraud" / "7")
    writer = RecordWriter("events", columns, schema.stages, 0.5, bool(schema.lookups))
    return Output(writer, preparation, 0.25, True)


def served(
    port: int, output: Output, *, deadline_ms: float = 20_000.0, switch: Switch | None = None
) -> ServedScoring:
    """At most 4 rows a call, 3 calls in flight."""
    target = f"127.0.0.1:{port}"
    options = ClientOptions(target, "fraud", deadline_ms=deadline_ms, max_attempts=1)
    if switch is not None:
        return HeldScoring(switch, options, output, 4, 3)
    return ServedScoring(options, output, 4, 3)
