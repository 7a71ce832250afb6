"""Engines by name; each is imported only when it is wanted."""
