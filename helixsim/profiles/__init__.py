"""LLMs and machine types: data that users write in files, never classes."""
