"""Reading more than can be dealt with: a rate limit, and the shedding of events."""
