"""``python -m helixreal``."""

from helixreal.cli import main

main()
