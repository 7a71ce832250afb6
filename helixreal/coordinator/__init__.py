"""The coordinator's side of a real cluster."""
