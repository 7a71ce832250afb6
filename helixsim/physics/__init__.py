"""How long work takes: performance models and the engines that they describe."""
