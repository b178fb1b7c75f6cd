"""The jobs and the command line that runs them: wiring only, no computing."""
