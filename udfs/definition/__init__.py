"""What a user declares: the events, their features, their preparation and what enriches them."""
