"""Model server and client of streamscore, speaking TensorFlow Serving's gRPC API.

Importing this package loads nothing else. The parts a Flink operator embeds
(``backends``, ``repository``, ``errors``, ``warmup``) never import gRPC; only ``protos``
imports the generated TensorFlow stubs.
"""
