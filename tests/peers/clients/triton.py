"""tritonclient over gRPC and HTTP, as its own documentation uses it."""

import json
import sys
import threading

import numpy as np
import tritonclient.grpc as over_grpc
import tritonclient.http as over_http
from tritonclient.utils import InferenceServerException

given = json.loads(sys.argv[1])
rows = np.load(given["rows"])
found = {}
for name, module, target, admin in (
    ("grpc", over_grpc, given["grpc"], given["admin"]),
    ("http", over_http, given["http"], given["admin_http"]),
):
    client = module.InferenceServerClient(f"127.0.0.1:{target}")
    assert client.is_server_live() and client.is_server_ready()
    assert client.is_model_ready("fraud") and client.is_model_ready("fraud", "3")
    as_json = {"as_json": True} if name == "grpc" else {}
    server = client.get_server_metadata(**as_json)
    metadata = client.get_model_metadata("fraud", **as_json)
    found[f"{name}_metadata"] = [server["name"], metadata["inputs"], metadata["versions"]]

    scores = {}
    for label, binary in (("binary", True), ("json", False)):
        if name == "grpc" and not binary:
            continue
        tensor = module.InferInput("inputs", list(rows.shape), "FP32")
        how = {"binary_data": binary} if name == "http" else {}
        tensor.set_data_from_numpy(rows, **how)
        wanted = [module.InferRequestedOutput("scores", **how)]
        result = client.infer("fraud", [tensor], outputs=wanted, request_id="7")
        scores[label] = result.as_numpy("scores").tolist()
        half = module.InferInput("inputs", list(rows.shape), "FP16")
        half.set_data_from_numpy(rows.astype(np.float16))
        scores[f"{label}_half"] = client.infer("fraud", [half]).as_numpy("scores").tolist()
    found[f"{name}_scores"] = scores

    errors = {}
    for label, call, arguments in (
        ("model", client.infer, {"model_name": "none", "inputs": [tensor]}),
        (
            "version",
            client.infer,
            {"model_name": "fraud", "inputs": [tensor], "model_version": "9"},
        ),
        ("unload", client.unload_model, {"model_name": "fraud"}),
    ):
        try:
            call(**arguments)
            errors[label] = "none"
        except InferenceServerException as exc:
            errors[label] = str(exc.status())
    found[f"{name}_errors"] = errors

    admin_client = module.InferenceServerClient(f"127.0.0.1:{admin}")
    index = admin_client.get_model_repository_index(**as_json)
    found[f"{name}_index"] = index["models"] if name == "grpc" else index
    admin_client.unload_model("fraud")
    try:
        found[f"{name}_unloaded"] = not client.is_model_ready("fraud")
    except InferenceServerException:
        found[f"{name}_unloaded"] = True
    admin_client.load_model("fraud")
    assert client.is_model_ready("fraud")

stream = over_grpc.InferenceServerClient(f"127.0.0.1:{given['grpc']}")
answers = []
tensor = over_grpc.InferInput("inputs", list(rows.shape), "FP32")
tensor.set_data_from_numpy(rows)
answered = threading.Event()


def keep(result, error):
    answers.append(result or error)
    answered.set()


stream.async_infer("fraud", [tensor], keep)
assert answered.wait(60)
found["async_scores"] = answers[0].as_numpy("scores").tolist()
print(json.dumps(found))
