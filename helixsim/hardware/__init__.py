"""GPUs by their data sheets."""
