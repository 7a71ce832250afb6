"""Large language models by their architecture: what a ``config.json`` says, and what follows."""
