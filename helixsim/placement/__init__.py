"""Placements (the layers of each node), and the flow graph of a placement."""
