"""The sections of a job's settings file."""
