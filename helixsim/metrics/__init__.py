"""Measurements of a run: records while it runs, a summary and frames when it has ended."""
