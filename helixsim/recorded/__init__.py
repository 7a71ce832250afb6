"""Recorded runs of real clusters: reading, figures and replay."""
