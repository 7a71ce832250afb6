"""Search for placements of greatest maximum flow, and upper bounds on it."""
