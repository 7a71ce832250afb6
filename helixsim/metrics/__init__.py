"""What a run has measured: records while it runs, frames and a summary when it has ended."""
