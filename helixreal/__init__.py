"""Serving a scenario for real: processes that talk over ZeroMQ, and engines that make tokens.

What decides is the simulator's own code; this package only carries its decisions out.
"""
