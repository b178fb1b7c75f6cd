"""Content ranking without an engine: items, users' state, candidates, features, offline replay."""
