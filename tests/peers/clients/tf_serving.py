"""TensorFlow with tensorflow-serving-api's own stubs."""

import json
import sys

import grpc
import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    inference_pb2,
    model_management_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
    regression_pb2,
)

given = json.loads(sys.argv[1])
rows = np.load(given["rows"])
found = {}


def example(row):
    return tf.train.Example(
        features=tf.train.Features(
            feature={
                name: tf.train.Feature(float_list=tf.train.FloatList(value=[value]))
                for name, value in zip(given["columns"], row, strict=True)
            }
        )
    )


with grpc.insecure_channel(f"127.0.0.1:{given['grpc']}") as channel:
    stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
    for name, tensor in {
        "float32": tf.make_tensor_proto(rows),
        "float64": tf.make_tensor_proto(rows.astype(np.float64)),
        "constant": tf.constant(rows),
    }.items():
        proto = tensor if name != "constant" else tf.make_tensor_proto(tensor)
        request = predict_pb2.PredictRequest()
        request.model_spec.name = "fraud"
        request.model_spec.signature_name = "serving_default"
        request.inputs["inputs"].CopyFrom(proto)
        response = stub.Predict(request, timeout=30)
        found[name] = tf.make_ndarray(response.outputs["scores"]).tolist()
        assert response.model_spec.version.value == 3

    classify = classification_pb2.ClassificationRequest()
    regress = regression_pb2.RegressionRequest()
    both = inference_pb2.MultiInferenceRequest()
    for request in (classify, regress, both):
        request.input.example_list.examples.extend(map(example, rows))
    classify.model_spec.name = regress.model_spec.name = "fraud"
    for method in ("classify", "regress"):
        task = both.tasks.add(method_name=f"tensorflow/serving/{method}")
        task.model_spec.name, task.model_spec.signature_name = "fraud", method
    answer = stub.Classify(classify, timeout=30)
    found["classify"] = [entry.classes[1].score for entry in answer.result.classifications]
    answer = stub.Regress(regress, timeout=30)
    found["regress"] = [entry.value for entry in answer.result.regressions]
    answer = stub.MultiInference(both, timeout=30)
    found["multi"] = [entry.value for entry in answer.results[1].regression_result.regressions]

    request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    request.model_spec.name = "fraud"
    signatures = get_model_metadata_pb2.SignatureDefMap()
    stub.GetModelMetadata(request).metadata["signature_def"].Unpack(signatures)
    shape = signatures.signature_def["serving_default"].inputs["inputs"].tensor_shape
    found["shape"] = tf.TensorShape(shape).as_list()

    request = get_model_status_pb2.GetModelStatusRequest()
    request.model_spec.name = "fraud"
    status = model_service_pb2_grpc.ModelServiceStub(channel).GetModelStatus(request)
    found["states"] = [(entry.version, entry.state) for entry in status.model_version_status]

with grpc.insecure_channel(f"127.0.0.1:{given['admin']}") as channel:
    reload = model_management_pb2.ReloadConfigRequest()
    reload.config.model_config_list.config.add(name="fraud", base_path=given["base_path"])
    service = model_service_pb2_grpc.ModelServiceStub(channel)
    found["reload"] = service.HandleReloadConfigRequest(reload).status.error_code
print(json.dumps(found))
