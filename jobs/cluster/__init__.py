"""Clusters and a job's life on them: start, submission, savepoints, upgrades, capacity."""
