"""``streamscore demo``: a job on this machine from its data to its report."""
