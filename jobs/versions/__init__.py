"""Versions of a job beside each other: replays to topics of their own, and the readers' move."""
