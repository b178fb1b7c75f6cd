"""``streamscore features``: what features are, cost and are worth."""
