"""The command line of helixreal."""
