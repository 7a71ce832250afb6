"""Plan, simulate and run large-language-model serving on mixed GPUs and uneven networks."""
