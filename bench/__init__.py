"""Benchmarks: one script per headline figure."""
