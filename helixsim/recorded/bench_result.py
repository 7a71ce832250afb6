"""Read the result of `vllm bench serve --save-result --save-detailed` as a recording.

The end-to-end latency, which the file does not contain, is the TTFT plus the sum of the inter-token
latencies. The lists of the file are in :mod:`helixsim.traces.bench_result`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from helixsim.errors import InputError
from helixsim.recorded.request_log import RequestLog, left_out
from helixsim.traces.bench_result import BenchLists

_LISTS = ("input_lens", "output_lens", "ttfts", "itls")


def is_bench_result(file: Path) -> bool:
    """Whether a file holds such a result, detailed or not."""
    try:
        with file.open("rb") as stream:
            content = stream.read()
    except OSError:
        return False
    return b'"request_throughput"' in content or b'"input_lens"' in content


def read_bench_result(file: Path) -> RequestLog:
    """Read a result; failed requests are left out and counted in a note.

    Raises
    ------
    InputError
        If the file is invalid; the message names the list and the entry.
    """
    data = _document(file)
    lists = BenchLists(file, data)
    failed = np.array(lists.failed())
    kept = np.flatnonzero(~failed)
    if not len(kept):
        raise InputError("has no request that succeeded", file=file)
    prompts, answers, ttft, decoding = (
        np.array(values)[kept]
        for values in (
            lists.counts("input_lens"),
            lists.counts("output_lens"),
            lists.times("ttfts"),
            lists.decoding(),
        )
    )
    if not prompts.all():
        raise lists.mistake("input_lens", int(kept[prompts.argmin()]), "should be at least 1")
    notes = left_out(int(failed.sum()), len(failed), "they failed")
    times, on_times = lists.sent(kept.tolist())
    notes += on_times
    order = np.argsort(times, kind="stable")
    sent = np.array(times)[order]
    first = sent + ttft[order]
    about = {"model": str(data["model_id"])} if data.get("model_id") else {}
    return RequestLog(
        file,
        prompts[order],
        answers[order],
        sent,
        first,
        first + decoding[order],
        about=about,
        notes=notes,
    )


def _document(file: Path) -> dict[str, Any]:
    try:
        text = file.read_text(encoding="utf-8")
        data = json.loads(text)
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror or error}", file=file) from error
    except json.JSONDecodeError as error:
        text = "should be one JSON object"
        if error.msg == "Extra data":
            text += "; --append-result wrote several, keep one in a file"
        raise InputError(text, file=file, where=f"row {error.lineno}") from error
    except ValueError as error:
        raise InputError("is not UTF-8 text", file=file) from error
    if not isinstance(data, dict):
        raise InputError("should be an object", file=file)
    missing = [name for name in _LISTS if name not in data]
    if missing:
        raise InputError(
            f"lacks {missing[0]}: run `vllm bench serve` with --save-result --save-detailed",
            file=file,
        )
    return data
