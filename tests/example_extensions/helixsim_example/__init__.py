"""One extension of helixsim of each kind."""
