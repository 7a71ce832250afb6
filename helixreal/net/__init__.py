"""Messages, sockets and the clock of a real cluster."""
