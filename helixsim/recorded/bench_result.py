"""Read the result of `vllm bench serve --save-result --save-detailed`.

The lists of the file have one entry for each request. Times are seconds; the end-to-end latency,
which the file does not contain, is the TTFT plus the sum of the inter-token latencies. Source:
``vllm/benchmarks/serve.py`` of vLLM. Versions before 2026 do not write ``start_times``.
"""

from __future__ import annotations

import json
from heapq import heappop, heappush
from math import inf, isfinite
from pathlib import Path
from typing import Any

import numpy as np

from helixsim.errors import InputError
from helixsim.recorded.request_log import RequestLog, left_out

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
    lists = _Lists(file, data)
    failed = lists.failed()
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
    if "start_times" in data:
        sent = np.array(lists.times("start_times"))[kept]
    else:
        sent, note = _reconstructed(file, data, ttft + decoding)
        notes += (note,)
    order = np.argsort(sent, kind="stable")
    sent = (sent - sent.min())[order]
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


class _Lists:
    """The lists of a result; errors name the list and the entry."""

    def __init__(self, file: Path, data: dict[str, Any]) -> None:
        self._file, self._data = file, data
        length = len(self._list("input_lens", None))
        if not length:
            raise InputError("has no requests", file=file, where="input_lens")
        self._length = length

    def counts(self, name: str) -> list[int]:
        """A list of token counts."""
        found = self._list(name, self._length)
        for place, value in enumerate(found):
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise self.mistake(name, place, "should be a number of tokens")
        return found

    def times(self, name: str) -> list[float]:
        """A list of times in seconds."""
        found = self._list(name, self._length)
        for place, value in enumerate(found):
            if not _is_time(value):
                raise self.mistake(name, place, "should be a time in seconds, at least 0")
        return found

    def decoding(self) -> list[float]:
        """For each request, the time from its first token to its last."""
        sums = []
        for place, gaps in enumerate(self._list("itls", self._length)):
            if not isinstance(gaps, list) or not all(map(_is_time, gaps)):
                raise self.mistake("itls", place, "should be a list of times in seconds")
            sums.append(float(sum(gaps)))
        return sums

    def failed(self) -> np.ndarray:
        """Which requests failed: they have an error, or no answer."""
        failed = np.array(self.counts("output_lens")) == 0
        if "errors" in self._data:
            failed |= [bool(error) for error in self._list("errors", self._length)]
        return np.asarray(failed)

    def mistake(self, name: str, place: int, text: str) -> InputError:
        """An error in an entry."""
        return InputError(text, file=self._file, where=f"{name}[{place}]")

    def _list(self, name: str, length: int | None) -> list[Any]:
        found = self._data[name]
        if not isinstance(found, list):
            raise InputError("should be a list", file=self._file, where=name)
        if length is not None and len(found) != length:
            raise InputError(
                f"has {len(found)} entries; input_lens has {length}", file=self._file, where=name
            )
        return found


def _is_time(value: object) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and isfinite(value) and value >= 0  # type: ignore[arg-type,operator]


def _reconstructed(file: Path, data: dict[str, Any], e2e_s: np.ndarray) -> tuple[np.ndarray, str]:
    """Sending times of a result without ``start_times``, and a note.

    The benchmark sends requests at `request_rate`, each as soon as fewer than `max_concurrency`
    are in flight. Thus an infinite rate gives exact times, a finite rate times at equal intervals,
    which the benchmark drew at random.
    """
    rate, limit = inf, inf
    try:
        rate = float(data.get("request_rate", inf))
        given = data.get("max_concurrency")
        limit = inf if given is None else int(given)
        valid = rate > 0 and limit >= 1
    except (TypeError, ValueError):
        valid = False
    if not valid:
        raise InputError(
            "lacks start_times, and request_rate and max_concurrency are no positive numbers",
            file=file,
        )
    sent, ends = np.zeros(len(e2e_s)), list[float]()
    for number, took in enumerate(e2e_s.tolist()):
        at = number / rate
        if len(ends) >= limit:
            at = max(at, heappop(ends))
        sent[number] = at
        heappush(ends, at + took)
    how = "at once" if rate == inf else f"at equal intervals, {rate:g} a second"
    if limit < inf:
        how += f", at most {limit} in flight"
    return sent, f"the file has no start_times: requests are taken as sent {how}"
