"""The feedback join: what was shown, and what became of it. No engine."""
