"""SavedModels of several kinds with TensorFlow's own answers, and a warm-up file."""

import json
import sys
from pathlib import Path

import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_log_pb2

given = json.loads(sys.argv[1])
rows = np.load(given["rows"])
folder = Path(given["folder"])


class Mixed(tf.Module):
    """Strings, integers and floats; several signatures."""

    def __init__(self):
        super().__init__()
        self.weight = tf.Variable([1.0, -2.0, 0.5])

    @tf.function(
        input_signature=[
            tf.TensorSpec([None, 3], tf.float32, name="x"),
            tf.TensorSpec([None], tf.string, name="name"),
        ]
    )
    def greet(self, x, name):
        return {
            "total": tf.reduce_sum(x * self.weight, axis=1),
            "greeting": tf.strings.join(["hello ", name]),
        }

    @tf.function(input_signature=[tf.TensorSpec(None, tf.int64, name="n")])
    def double(self, n):
        return {"twice": n * 2, "half": tf.cast(tf.cast(n, tf.float32) / 2, tf.bfloat16)}

    @tf.function(input_signature=[tf.TensorSpec([2, None], tf.float32, name="m")])
    def invert(self, m):
        return {"inverse": tf.linalg.inv(m)}


mixed = Mixed()
signatures = {"serving_default": mixed.greet, "double": mixed.double, "invert": mixed.invert}
tf.saved_model.save(mixed, str(folder / "mixed" / "1"), signatures)

request = predict_pb2.PredictRequest()
request.model_spec.signature_name = "double"
request.inputs["n"].CopyFrom(tf.make_tensor_proto(np.arange(3, dtype=np.int64)))
log = prediction_log_pb2.PredictionLog(predict_log=prediction_log_pb2.PredictLog(request=request))
extra = folder / "mixed" / "1" / "assets.extra"
extra.mkdir()
with tf.io.TFRecordWriter(str(extra / "tf_serving_warmup_requests")) as writer:
    writer.write(log.SerializeToString())
    writer.write(prediction_log_pb2.PredictionLog().SerializeToString())

tf.keras.utils.set_random_seed(0)
network = tf.keras.Sequential(
    [
        tf.keras.layers.Input((rows.shape[1],)),
        tf.keras.layers.Dense(16, "relu"),
        tf.keras.layers.Dense(1, "sigmoid"),
    ]
)
network.export(str(folder / "keras" / "1"), verbose=False)
loaded = tf.saved_model.load(str(folder / "keras" / "1")).signatures["serving_default"]
(name,) = loaded.structured_input_signature[1]
(output,) = loaded.structured_outputs
answer = {
    "keras": {
        "input": name,
        "output": output,
        "scores": loaded(**{name: tf.constant(rows)})[output].numpy().ravel().tolist(),
    },
    "total": (rows[:, :3] @ np.array([1.0, -2.0, 0.5])).tolist(),
}
print(json.dumps(answer))
