"""The control plane: coordinator, routing, node schedulers, KV caches. No clock, no network."""
