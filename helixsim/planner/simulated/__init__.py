"""Search for placements by simulation, guided by a surrogate."""
