"""Which node holds which layers, and the flow of tokens that follows from it."""
