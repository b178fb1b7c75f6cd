"""Scores of a model in the job."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
from skl2onnx import to_onnx
from sklearn.linear_model import LogisticRegression

from tests.support.flink import Subtask
from tests.support.models import write_features
from tests.support.outputs import plain
from tests.support.stages import scorable
from udfs.scoring.embedded import EmbeddedScoring
from udfs.scoring.output import Output


class TestEmbeddedScoring:
    def test_every_row_has_one_prediction_of_the_model(self, embedded: EmbeddedScoring) -> None:
        stream = scorable()
        rows = plain(Subtask(embedded).run_all(stream))
        predictions = [p for row in rows for _, p in row[0]]
        alerts = [a for row in rows for _, a in row[1]]
        assert [p["event_id"] for p in predictions] == [i for _, b in stream for i in b.ids]
        assert {(p["model"]["name"], p["model"]["version"]) for p in predictions} == {("fraud", 7)}
        assert len({p["prediction_id"] for p in predictions}) == len(predictions)
        assert len(alerts) == sum(p["score"] > 0.5 for p in predictions) > 0
        for alert in alerts:
            assert alert["event"]["id"] == alert["prediction"]["event_id"]
            assert len(alert["reasons"]) == 3

    def test_an_onnx_model_is_embedded_as_well(self, tmp_path: Path, output: Output) -> None:
        columns = list(output.preparation.columns)
        rows = np.random.default_rng(2).random((300, len(columns))).astype(np.float32) * 20
        model = LogisticRegression().fit(rows, rows[:, 0] > 5)
        folder = tmp_path / "9"
        folder.mkdir()
        graph = to_onnx(model, rows[:1], options={"zipmap": False})
        (folder / "model.onnx").write_bytes(graph.SerializeToString())
        write_features(folder, tuple(columns), impute=0.0)
        scored = plain(Subtask(EmbeddedScoring(folder, "fraud", output)).run_all(scorable()))
        predictions = {p["event_id"]: p for row in scored for _, p in row[0]}
        matrix = {
            event_id: values
            for _, batch in scorable()
            if len(batch)
            for event_id, values in zip(batch.ids, output.model_input(batch), strict=True)
        }
        assert predictions.keys() == matrix.keys()
        expected = model.predict_proba(np.array(list(matrix.values())))[:, 1]
        found = [predictions[event_id]["score"] for event_id in matrix]
        assert np.abs(np.array(found) - expected).max() < 1e-6
        assert {p["model"]["version"] for p in predictions.values()} == {9}
        alerts = [a for row in scored for _, a in row[1]]
        assert alerts and all(alert["reasons"] == [] for alert in alerts)

    def test_refused_records_leave_once(self, embedded: EmbeddedScoring) -> None:
        stream = scorable()
        rows = plain(Subtask(embedded).run_all(stream))
        assert any(len(b) == 0 for _, b in stream)
        for column, name in ((2, "dead_letters"), (3, "duplicates")):
            sent = Counter(r for _, b in stream for r in getattr(b, name))
            left = Counter(
                (key, json.dumps(record, separators=(",", ":")).encode())
                for row in rows
                for key, record in row[column]
            )
            assert left == sent
            assert left
