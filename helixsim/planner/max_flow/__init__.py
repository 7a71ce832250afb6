"""The placement of greatest maximum flow, and a bound that no placement exceeds."""
