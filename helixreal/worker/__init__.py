"""A worker's side of a real cluster."""
