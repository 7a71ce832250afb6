"""Runs of real clusters, as they were recorded: reading them, their figures, sending them again."""
