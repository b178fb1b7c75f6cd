"""`streamscore demo-feed`: content ranking end to end on this machine."""
