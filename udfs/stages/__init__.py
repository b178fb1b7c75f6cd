"""Flink operators that compute features: one Python call per micro-batch.

Every operator here runs in thread mode, keyed by bucket, and keeps its histories in map state:
entity -> packed bytes. Flink checkpoints, restores and rescales that state; the operator holds no
buffer that a checkpoint could miss.
"""
