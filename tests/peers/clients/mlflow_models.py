"""Models in MLflow's registry: two good versions of ``fraud``, two broken ones, an ONNX model."""

import json
import sys
import tempfile
from pathlib import Path

import mlflow
import numpy as np
import onnx
import pandas as pd
import xgboost
from mlflow.models import infer_signature
from sklearn.linear_model import LogisticRegression

given = json.loads(sys.argv[1])
rows = np.load(given["rows"])
columns = given["columns"]
mlflow.set_tracking_uri(given["tracking_uri"])
client = mlflow.MlflowClient()
table = pd.DataFrame(rows, columns=columns)
labels = (rows[:, 0] > 0).astype(int)
answer = {}


def booster(rounds):
    matrix = xgboost.DMatrix(rows, labels, feature_names=columns)
    settings = {"objective": "binary:logistic", "max_depth": 3, "nthread": 1}
    return xgboost.train(settings, matrix, num_boost_round=rounds)


def scores(made):
    return made.predict(xgboost.DMatrix(rows, feature_names=columns)).tolist()


# Named, or MLflow runs each model in a process of its own to find them out.
needs = {"pip_requirements": ["mlflow"]}

with mlflow.start_run() as run:
    for rounds, form in ((3, "ubj"), (6, "json")):
        made = booster(rounds)
        answer[f"fraud {len(answer) + 1}"] = scores(made)
        mlflow.xgboost.log_model(
            made,
            name="fraud",
            registered_model_name="fraud",
            signature=infer_signature(table, np.array([0.5])),
            model_format=form,
            **needs,
        )
    pickled = LogisticRegression().fit(rows, labels)
    mlflow.sklearn.log_model(
        pickled,
        name="pickled",
        registered_model_name="fraud",
        signature=infer_signature(table, labels),
        serialization_format="cloudpickle",
        **needs,
    )

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "broken"
        signature = infer_signature(table, np.array([0.5]))
        mlflow.xgboost.save_model(booster(3), path, signature=signature, **needs)
        (path / "model.ubj").write_bytes(b"half")
        mlflow.log_artifacts(str(path), "broken")
        client.create_model_version("fraud", mlflow.get_artifact_uri("broken"), run.info.run_id)

    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    weights = np.linspace(-1, 1, len(columns), dtype=np.float32)[:, None]
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["margin"]),
            helper.make_node("Sigmoid", ["margin"], ["score"]),
        ],
        "linear",
        [helper.make_tensor_value_info("x", kind, [None, len(columns)])],
        [helper.make_tensor_value_info("score", kind, [None, 1])],
        [onnx.numpy_helper.from_array(weights, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    features = [{"name": name, "type": "float", "impute": 0.0} for name in columns]
    mlflow.onnx.log_model(
        model,
        name="linear",
        registered_model_name="linear",
        metadata={"features": {"format": 1, "features": features}},
        **needs,
    )
answer["linear"] = (1 / (1 + np.exp(-(rows @ weights).ravel().astype(float)))).tolist()
client.set_registered_model_alias("fraud", "champion", 1)
print(json.dumps(answer))
