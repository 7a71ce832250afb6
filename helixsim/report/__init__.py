"""One self-contained web page on one run, or on several side by side."""
