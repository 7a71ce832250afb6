"""Lengths, rates and latencies of a request log."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from helixsim.recorded.inspection import write_files
from helixsim.recorded.log_figures import (
    COLUMNS,
    Latencies,
    figure,
    sent_between,
    statistics,
    statistics_text,
)
from helixsim.recorded.request_log import RequestLog


def inspect_log(
    log: RequestLog, start_s: float = 0.0, end_s: float | None = None
) -> dict[str, Any]:
    """The figures of a request log, as plain data.

    Rates are over the makespan, except for `arrivals_per_s`: over the time of sending.

    Parameters
    ----------
    log
        The recording.
    start_s, end_s
        Latencies are of the requests that were sent in this window, in seconds since the first
        request; without an end, until the last.
    """
    chosen = sent_between(log, start_s, end_s)
    finished = np.isfinite(log.last_token_s)
    makespan = log.makespan_s
    sending = float(log.sent_s.max())

    def per_s(amount: float) -> float | None:
        return float(amount) / makespan if makespan else None

    return {
        "run": log.name,
        "about": dict(log.about),
        "requests": len(log),
        "finished": int(finished.sum()),
        "input_tokens": statistics(log.input_tokens),
        "output_tokens": statistics(log.output_tokens),
        "sending_ended_s": sending,
        "makespan_s": makespan,
        "arrivals_per_s": (len(log) - 1) / sending if sending else None,
        "requests_per_s": per_s(finished.sum()),
        "input_tokens_per_s": per_s(log.input_tokens[finished].sum()),
        "output_tokens_per_s": per_s(log.output_tokens[finished].sum()),
        "window_s": [start_s, sending if end_s is None else end_s],
        **Latencies.of(log).statistics(chosen),
        "preemptions": log.preemptions,
        "running": _over_time(log, "running"),
        "waiting": _over_time(log, "waiting"),
        "notes": list(log.notes),
    }


def inspection_text(found: Mapping[str, Any]) -> str:
    """The figures of a request log."""
    about = ", ".join(f"{name} {value}" for name, value in found["about"].items())
    start, end = found["window_s"]
    lines = [
        found["run"] + (f": {about}" if about else ""),
        f"requests: {found['requests']} sent within {found['sending_ended_s']:.1f} s, "
        f"{found['finished']} finished; makespan {found['makespan_s']:.3f} s",
        "",
        " " * 26 + "".join(f"{name:>10}" for name in COLUMNS),
        *(
            f"{title:<26}" + "".join(f"{found[key][name]:>10.1f}" for name in COLUMNS)
            for key, title in (("input_tokens", "input tokens"), ("output_tokens", "output tokens"))
        ),
        "",
        f"arrivals         {figure(found['arrivals_per_s']):>12} requests/s",
        f"throughput       {figure(found['requests_per_s']):>12} requests/s",
        f"input tokens     {figure(found['input_tokens_per_s']):>12} tokens/s",
        f"output tokens    {figure(found['output_tokens_per_s']):>12} tokens/s",
        "",
        f"latencies of requests sent from {start:g} s to {end:g} s",
        *statistics_text(found),
    ]
    if found["preemptions"] is not None:
        lines += ["", f"preemptions: {found['preemptions']}"]
    if found["running"] is not None:
        lines.append("")
    for key in ("running", "waiting"):
        if found[key] is not None:
            lines.append(f"{key} requests: mean {found[key]['mean']:.1f}, max {found[key]['max']}")
    return "\n".join([*lines, *(f"note: {note}" for note in found["notes"])])


def write_log_inspection(
    log: RequestLog, found: dict[str, Any], folder: Path, *, overwrite: bool
) -> None:
    """Write figures, tables and plots into a folder.

    Raises
    ------
    OutputError
        If a file exists and `overwrite` is false, or a file cannot be written.
    """
    import pandas as pd

    from helixsim.recorded.log_plots import inspection_picture

    latencies = Latencies.of(log)
    table = pd.DataFrame(
        {
            "request": range(len(log)),
            "sent_s": log.sent_s,
            "input_tokens": log.input_tokens,
            "output_tokens": log.output_tokens,
            "ttft_s": latencies.ttft_s,
            "tpot_s": latencies.tpot_s,
            "e2e_s": latencies.e2e_s,
        }
    )
    contents: dict[str, str | bytes] = {
        "inspection.json": json.dumps(found, indent=2) + "\n",
        "latencies.csv": table.to_csv(index=False, lineterminator="\n"),
        "inspection.png": inspection_picture(log),
    }
    if log.series is not None:
        series = log.series
        rows = zip(series.time_s, series.running, series.waiting, strict=True)
        contents["series.csv"] = "time_s,running,waiting\n" + "".join(
            f"{time_s},{running},{waiting}\n" for time_s, running, waiting in rows
        )
    write_files(folder, contents, overwrite=overwrite)


def _over_time(log: RequestLog, name: str) -> dict[str, float] | None:
    if log.series is None:
        return None
    values = getattr(log.series, name)
    return {"mean": float(values.mean()), "max": int(values.max())}
