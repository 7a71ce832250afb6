"""The tables of docs/profiles.md."""
def write_docs(constants, steps): pass
