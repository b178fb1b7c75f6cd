"""Scores: the model in the operator or behind a server, its versions and rollouts."""
