"""The lists of a result of `vllm bench serve --save-result --save-detailed`.

They have one entry for each request. Times are seconds. Source: ``vllm/benchmarks/serve.py`` of
vLLM. Versions before 2026 do not write ``start_times``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from heapq import heappop, heappush
from math import inf, isfinite
from pathlib import Path
from typing import Any

from helixsim.errors import TraceError


class BenchLists:
    """The lists of a result; errors name the list and the entry."""

    def __init__(self, file: Path, data: Mapping[str, Any]) -> None:
        self._file, self._data = file, data
        length = len(self._list("input_lens", None))
        if not length:
            raise TraceError("has no requests", file=file, where="input_lens")
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

    def failed(self) -> list[bool]:
        """Which requests failed: they have an error, or no answer."""
        failed = [not tokens for tokens in self.counts("output_lens")]
        if "errors" in self._data:
            errors = self._list("errors", self._length)
            failed = [bool(error) or lost for error, lost in zip(errors, failed, strict=True)]
        return failed

    def sent(self, kept: Sequence[int]) -> tuple[list[float], tuple[str, ...]]:
        """When the requests of these numbers were sent, and notes on it.

        In seconds from the first of them; without ``start_times``, as the benchmark sends at its
        rate.
        """
        if "start_times" in self._data:
            times = self.times("start_times")
            first = min(times[number] for number in kept)
            return [times[number] - first for number in kept], ()
        ttft, decoding = self.times("ttfts"), self.decoding()
        took = [ttft[number] + decoding[number] for number in kept]
        sent, note = _reconstructed(self._file, self._data, took)
        return sent, (note,)

    def mistake(self, name: str, place: int, text: str) -> TraceError:
        """An error in an entry."""
        return TraceError(text, file=self._file, where=f"{name}[{place}]")

    def _list(self, name: str, length: int | None) -> list[Any]:
        if name not in self._data:
            raise TraceError(
                f"lacks {name}: run `vllm bench serve` with --save-result --save-detailed",
                file=self._file,
            )
        found = self._data[name]
        if not isinstance(found, list):
            raise TraceError("should be a list", file=self._file, where=name)
        if length is not None and len(found) != length:
            raise TraceError(
                f"has {len(found)} entries; input_lens has {length}", file=self._file, where=name
            )
        return found


def _is_time(value: object) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and isfinite(value) and value >= 0  # type: ignore[arg-type,operator]


def _reconstructed(
    file: Path, data: Mapping[str, Any], e2e_s: Sequence[float]
) -> tuple[list[float], str]:
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
        raise TraceError(
            "lacks start_times, and request_rate and max_concurrency are no positive numbers",
            file=file,
        )
    sent, ends = list[float](), list[float]()
    for number, took in enumerate(e2e_s):
        at = number / rate
        if len(ends) >= limit:
            at = max(at, heappop(ends))
        sent.append(at)
        heappush(ends, at + took)
    how = "at once" if rate == inf else f"at equal intervals, {rate:g} a second"
    if limit < inf:
        how += f", at most {limit} in flight"
    return sent, f"the file has no start_times: requests are taken as sent {how}"
