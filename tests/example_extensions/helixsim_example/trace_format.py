"""A trace format: a log with milliseconds and lengths."""

from helixsim.traces import Format, Holds


def _row(fields):
    sent_ms, prompt, answer = fields
    return float(sent_ms), int(prompt), int(answer)


EXAMPLE_LOG = Format(
    "example log", Holds.REQUESTS, ("sent_ms", "prompt", "answer"), _row, ticks_per_s=1000
)
