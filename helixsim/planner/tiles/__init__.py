"""Plans by simulation for large clusters: cut into tiles, each planned by itself."""
