"""The features of a whole history, without an engine."""
