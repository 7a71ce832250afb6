"""Pictures: placements, and what they do."""
