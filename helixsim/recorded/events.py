"""Read the departures and returns of passes of a recorded run."""

from __future__ import annotations

import gzip
import zlib
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import NamedTuple

import numpy as np

from helixsim.errors import InputError
from helixsim.metrics.output import EVENT_COLUMNS


@dataclass(frozen=True, slots=True)
class Passes:
    """Passes of requests through the LLM, in the order in which they left.

    Attributes
    ----------
    request
        Number of the request in the run.
    is_prompt
        Whether it is a prefill; the chunks of one count as one pass.
    start_s, end_s
        When it left the coordinator and came back, seconds since the start of sending; infinite
        if it did not.
    context_tokens, num_tokens
        Tokens in the KV caches before the pass, and tokens of the pass.
    """

    request: np.ndarray
    is_prompt: np.ndarray
    start_s: np.ndarray
    end_s: np.ndarray
    context_tokens: np.ndarray
    num_tokens: np.ndarray

    @property
    def latency_s(self) -> np.ndarray:
        """Time from leaving the coordinator to coming back to it."""
        latency: np.ndarray = self.end_s - self.start_s
        return latency


def read_part(folder: Path, name: str) -> tuple[Path, str]:
    """The path and the text of a file of a recorded run, compressed or not."""
    plain, packed = folder / name, folder / f"{name}.gz"
    try:
        if packed.exists():
            return packed, gzip.decompress(packed.read_bytes()).decode()
        if plain.exists():
            return plain, plain.read_text(encoding="utf-8")
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"cannot be read: {error}", file=packed) from error
    except UnicodeDecodeError as error:
        raise InputError("is not UTF-8 text", file=packed) from error
    raise InputError(f"{name}.gz is missing; a recorded run must contain it", file=folder)


class _Event(NamedTuple):
    """A row of the events."""

    at_s: float
    query: int
    is_out: bool
    is_prompt: bool
    context_tokens: int
    num_tokens: int


class _PassTable:
    """Collects passes; chunks of a prefill become one."""

    def __init__(self) -> None:
        self.order: dict[int, int] = {}
        self.prompt_tokens: list[int] = []
        self.rows: list[tuple[int, bool, float, int, int]] = []
        self.ends: list[float] = []
        self._out: dict[int, int] = {}
        self._chunked: dict[int, int] = {}

    def add(self, event: _Event) -> None:
        """Add an event, in order of time; raises ValueError for an invalid event."""
        if event.is_out:
            self._out_of_coordinator(event)
            return
        row = self._out.pop(event.query, None)
        if row is None:
            raise ValueError(f"request {event.query} comes back without having left")
        self.ends[row] = event.at_s

    def _out_of_coordinator(self, event: _Event) -> None:
        at, query, _, is_prompt, context, tokens = event
        number = self.order.get(query)
        if number is None:
            if not is_prompt:
                raise ValueError(f"request {query} leaves for a decode before its prompt")
            number = self.order[query] = len(self.order)
            self.prompt_tokens.append(tokens)
            self._chunked[query] = len(self.rows)
        elif is_prompt and query in self._chunked:
            # The next chunk, or another attempt: the pass began when its first chunk left.
            row = self._chunked[query]
            self.prompt_tokens[number] = max(self.prompt_tokens[number], context + tokens)
            self.ends[row] = inf
            self._out[query] = row
            return
        else:
            self._chunked.pop(query, None)
        self._out[query] = len(self.rows)
        self.rows.append((number, query in self._chunked, at, context, tokens))
        self.ends.append(inf)

    def passes(self) -> Passes:
        number, is_prompt, start, context, tokens = zip(*self.rows, strict=True)
        sizes = [
            self.prompt_tokens[n] if prompt else size
            for n, prompt, size in zip(number, is_prompt, tokens, strict=True)
        ]
        return Passes(
            np.array(number),
            np.array(is_prompt),
            np.array(start),
            np.array(self.ends),
            np.array(context),
            np.array(sizes),
        )


def read_passes(file: Path, text: str) -> tuple[Passes, list[int], list[int]]:
    """The passes of a recorded run, its requests in order of departure, and their prompt tokens.

    Raises
    ------
    InputError
        If a row is invalid; the message names file and row.
    """
    lines = text.splitlines()
    if not lines or tuple(lines[0].split(",")) != EVENT_COLUMNS:
        raise InputError(f"should begin with {','.join(EVENT_COLUMNS)}", file=file, where="row 1")
    events = []
    for row, line in enumerate(lines[1:], start=2):
        try:
            events.append((row, _event(line)))
        except ValueError as error:
            raise InputError(str(error), file=file, where=f"row {row}") from error
    # Events are stamped at their source and may be written in another order.
    events.sort(key=lambda event: event[1].at_s)
    table = _PassTable()
    for row, event in events:
        try:
            table.add(event)
        except ValueError as error:
            raise InputError(str(error), file=file, where=f"row {row}") from error
    if not table.rows:
        raise InputError("has no events", file=file)
    return table.passes(), list(table.order), table.prompt_tokens


def _event(line: str) -> _Event:
    """Read one row; raises ValueError if it is invalid."""
    time_text, query_text, direction, phase, context, tokens = line.split(",")
    at_s, query = float(time_text), int(query_text)
    if not 0 <= at_s < inf:
        raise ValueError(f"time {time_text} should be finite and not negative")
    if phase not in ("prompt", "decode") or direction not in ("in", "out"):
        raise ValueError("direction is in or out, phase is prompt or decode")
    return _Event(at_s, query, direction == "out", phase == "prompt", int(context), int(tokens))
