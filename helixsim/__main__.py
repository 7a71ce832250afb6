"""``python -m helixsim`` is ``helixsim``."""

from helixsim.cli import main

main()
