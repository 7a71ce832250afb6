"""The placement that serves the most in simulations."""
