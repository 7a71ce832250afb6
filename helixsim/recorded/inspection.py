"""Figures, routes and work of a recorded run, over time and by node."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from helixsim.output_files import check_output, write_whole
from helixsim.recorded.figures import recorded_figures
from helixsim.recorded.recording import RecordedRun, tokens_by_node

if TYPE_CHECKING:
    import pandas as pd

_STEP_S = 10.0


def inspect_run(run: RecordedRun, start_s: float, end_s: float) -> dict[str, Any]:
    """The figures of a recorded run, as plain data.

    Parameters
    ----------
    run
        The recording.
    start_s, end_s
        Window of throughput and latencies, seconds since the start of sending.
    """
    passes = run.passes
    back = np.isfinite(passes.end_s)
    lengths = [request.prompt_tokens for request in run.requests]
    return {
        "run": run.name,
        "length_s": run.length_s,
        "sending_ended_s": run.sending_ended_s,
        "window_s": [start_s, end_s],
        "closed_loop": run.is_closed_loop,
        "requests": len(run.requests),
        "completed": _num_completed(run),
        "passes": int(back.sum()),
        "mean_prompt_tokens": sum(lengths) / len(lengths),
        "mean_output_tokens": sum(r.output_tokens for r in run.requests) / len(lengths),
        "nodes": len(run.node_names),
        "routes": len(_routes(run)),
        "without_route": run.num_without_route,
        **recorded_figures(run, start_s, end_s),
        "busiest_routes": [
            {"requests": count, "route": route} for route, count in _routes(run).most_common(5)
        ],
    }


def series(run: RecordedRun) -> pd.DataFrame:
    """The run over time, a row for every 10 s.

    Columns: `time_s` (end of the span), `decode_tokens_per_s`, `prompt_latency_s` and
    `decode_latency_s` (means of passes that came back in the span), `in_flight` (requests at the
    end of the span).
    """
    import pandas as pd

    passes = run.passes
    edges = np.arange(0.0, run.length_s + _STEP_S, _STEP_S)
    columns: dict[str, np.ndarray] = {"time_s": edges[1:]}
    for name, wanted in (("decode", ~passes.is_prompt), ("prompt", passes.is_prompt)):
        ends, latency = passes.end_s[wanted], passes.latency_s[wanted]
        count = np.histogram(ends, edges)[0]
        kept = np.isfinite(latency)
        total = np.histogram(ends[kept], edges, weights=latency[kept])[0]
        if name == "decode":
            columns["decode_tokens_per_s"] = count / _STEP_S
        with np.errstate(invalid="ignore"):
            columns[f"{name}_latency_s"] = total / count
    left = np.searchsorted(np.sort(passes.start_s), edges[1:], side="right")
    came = np.searchsorted(np.sort(passes.end_s), edges[1:], side="right")
    columns["in_flight"] = left - came
    return pd.DataFrame(columns)


def write_inspection(
    run: RecordedRun, found: dict[str, Any], folder: Path, *, overwrite: bool
) -> None:
    """Write figures, tables and plots into a folder.

    Raises
    ------
    OutputError
        If a file exists and `overwrite` is false, or a file cannot be written.
    """
    from helixsim.recorded.plots import inspection_picture

    over_time = series(run)
    work = tokens_by_node(run)
    contents: dict[str, str | bytes] = {
        "inspection.json": json.dumps(found, indent=2) + "\n",
        "series.csv": over_time.to_csv(index=False, lineterminator="\n"),
        "nodes.csv": "node,token_layers\n"
        + "".join(f"{node},{tokens}\n" for node, tokens in work.items()),
        "routes.csv": "requests,route\n"
        + "".join(f"{count},{route}\n" for route, count in _routes(run).most_common()),
        "inspection.png": inspection_picture(run, over_time, work),
    }
    write_files(folder, contents, overwrite=overwrite)


def write_files(folder: Path, contents: Mapping[str, str | bytes], *, overwrite: bool) -> None:
    """Write files by name into a folder, which is created if it does not exist.

    Raises
    ------
    OutputError
        If a file exists and `overwrite` is false, or a file cannot be written.
    """
    check_output(folder.with_name(folder.name + ".x"), overwrite=True)
    for name in contents if folder.is_dir() else ():
        check_output(folder / name, overwrite=overwrite)
    folder.mkdir(exist_ok=True)
    for name, content in contents.items():
        write_whole(folder / name, content, overwrite=overwrite)


def _num_completed(run: RecordedRun) -> int:
    passes = run.passes
    done = Counter(passes.request[np.isfinite(passes.end_s)].tolist())
    return sum(done[number] >= request.num_passes for number, request in enumerate(run.requests))


def _routes(run: RecordedRun) -> Counter[str]:
    return Counter(
        " ".join(
            f"{run.node_names[stage.node]}[{stage.start_layer}:{stage.end_layer}]"
            for stage in request.stages
        )
        for request in run.requests
        if request.stages
    )
