"""MLServer's codecs and types over HTTP, and its converters over gRPC."""

import json
import sys
import urllib.request

import grpc
import numpy as np
import pandas as pd
from mlserver.codecs import NumpyCodec, NumpyRequestCodec, PandasCodec
from mlserver.grpc.converters import ModelInferRequestConverter, ModelInferResponseConverter
from mlserver.grpc.dataplane_pb2_grpc import GRPCInferenceServiceStub
from mlserver.types import InferenceRequest, InferenceResponse

given = json.loads(sys.argv[1])
rows = np.load(given["rows"])
url = f"http://127.0.0.1:{given['http']}/v2/models/fraud/infer"
table = pd.DataFrame(rows, columns=given["columns"])
found = {}

requests_ = {
    "numpy": InferenceRequest(inputs=[NumpyCodec.encode_input("inputs", rows)]),
    "numpy_request": NumpyRequestCodec.encode_request(rows),
    "pandas": PandasCodec.encode_request(table),
}
for name, request in requests_.items():
    with urllib.request.urlopen(url, request.model_dump_json().encode(), timeout=60) as answer:
        response = InferenceResponse.model_validate_json(answer.read())
    found[name] = NumpyCodec.decode_output(response.outputs[0]).ravel().tolist()

with grpc.insecure_channel(f"127.0.0.1:{given['grpc']}") as channel:
    stub = GRPCInferenceServiceStub(channel)
    for name, request in requests_.items():
        for raw in (False, True):
            message = ModelInferRequestConverter.from_types(
                request, model_name="fraud", model_version="", use_raw=raw
            )
            response = ModelInferResponseConverter.to_types(stub.ModelInfer(message))
            scores = NumpyCodec.decode_output(response.outputs[0]).ravel().tolist()
            found[f"{name}_grpc_{'raw' if raw else 'contents'}"] = scores
print(json.dumps(found))
