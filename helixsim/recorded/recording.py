"""Read a recorded run: departure and return of every pass, and every route.

A folder holds ``events.csv.gz`` with the columns
:data:`~helixsim.metrics.output.EVENT_COLUMNS`, ``routes.jsonl.gz`` with one object a request, and,
where ``helixreal`` wrote it, ``nodes.json`` with the names of the nodes. docs/replay.md has the
format.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import ceil, inf
from pathlib import Path
from typing import NamedTuple

import numpy as np

from helixsim.errors import InputError
from helixsim.metrics.output import EVENT_COLUMNS
from helixsim.requests import Stage

_MINUTE_S = 60.0
_CLOSED_SHARE = 0.5
"""A run in which at least this share of the prompts left at the instant at which a pass came back
had a closed loop."""


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


@dataclass(frozen=True, slots=True)
class Trigger:
    """The completion after which a closed loop sent a request: a prompt's or a last pass."""

    request: int
    is_end: bool


@dataclass(frozen=True, slots=True)
class RecordedRequest:
    """A request of a recorded run.

    Attributes
    ----------
    query
        Its number in the files.
    dispatched_s
        When its prompt left the coordinator.
    prompt_tokens, output_tokens
        Processed tokens of the prompt, and tokens of the answer.
    stages
        Its route; node numbers are the files' minus one.
    trigger
        The completion at the instant at which it was sent, if there was one.
    """

    query: int
    dispatched_s: float
    prompt_tokens: int
    output_tokens: int
    stages: tuple[Stage, ...]
    trigger: Trigger | None


class RecordedRun:
    """A recorded run.

    Attributes
    ----------
    folder
        Its folder.
    requests
        In the order of departure of their prompts.
    passes
        Passes of all requests.
    node_names
        Number of a node, as in stages -> its name.
    """

    def __init__(
        self,
        folder: Path,
        requests: tuple[RecordedRequest, ...],
        passes: Passes,
        node_names: Mapping[int, str],
    ) -> None:
        self.folder = folder
        self.requests = requests
        self.passes = passes
        self.node_names = node_names

    @property
    def name(self) -> str:
        """Name of its folder."""
        return self.folder.resolve().name

    @cached_property
    def length_s(self) -> float:
        """When the last pass left or came back."""
        ends = self.passes.end_s[np.isfinite(self.passes.end_s)]
        return float(max(self.passes.start_s.max(), ends.max() if len(ends) else 0.0))

    @property
    def sending_ended_s(self) -> float:
        """End of sending: the last prompt, rounded up to a minute, within the run.

        Files do not say it, and load generators send for whole minutes.
        """
        last = self.requests[-1].dispatched_s
        return min(ceil(last / _MINUTE_S) * _MINUTE_S, self.length_s) or self.length_s

    @property
    def is_closed_loop(self) -> bool:
        """Whether the run was a closed loop: prompts left when other requests came back."""
        triggered = sum(request.trigger is not None for request in self.requests)
        return triggered >= _CLOSED_SHARE * len(self.requests)


def load_recorded_run(folder: str | Path) -> RecordedRun:
    """Read a recorded run.

    Parameters
    ----------
    folder
        Folder of its files, each of which may be compressed by gzip (``.gz``).

    Raises
    ------
    InputError
        If a file is missing or invalid; the message names file and row.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError("is no folder; a recorded run is one", file=folder)
    routes_file, routes_text = _read(folder, "routes.jsonl")
    events_file, events_text = _read(folder, "events.csv")
    routes = _routes(routes_file, routes_text)
    names = _node_names(folder)
    passes, order, prompt_tokens = _passes(events_file, events_text, routes)
    triggers = _triggers(passes, len(order))
    prompts = {
        int(request): float(start)
        for request, start in zip(
            passes.request[passes.is_prompt], passes.start_s[passes.is_prompt], strict=True
        )
    }
    requests = tuple(
        RecordedRequest(
            query,
            prompts[number],
            prompt_tokens[number],
            routes[query].output_tokens,
            routes[query].stages,
            triggers.get(number),
        )
        for number, query in enumerate(order)
    )
    nodes = {stage.node for request in requests for stage in request.stages}
    return RecordedRun(
        folder,
        requests,
        passes,
        {node: names.get(node, f"compute_node_{node + 2}") for node in sorted(nodes)},
    )


@dataclass(frozen=True, slots=True)
class _Route:
    output_tokens: int
    stages: tuple[Stage, ...]


def _read(folder: Path, name: str) -> tuple[Path, str]:
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


def _routes(file: Path, text: str) -> dict[int, _Route]:
    routes: dict[int, _Route] = {}
    for row, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            data = json.loads(line)
            query = int(data["query"])
            output_tokens = int(data["output_tokens"])
            stages = tuple(
                Stage(int(node) - 1, int(start), int(end))
                for node, start, end in zip(
                    data["nodes"], data["start_layers"], data["end_layers"], strict=True
                )
                if int(node) > 0
            )
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                "should be an object with query, output_tokens, nodes, start_layers and "
                f"end_layers, the last three of one length ({error!r})",
                file=file,
                where=f"row {row}",
            ) from error
        if query in routes:
            raise InputError(
                f"request {query} has a duplicate route", file=file, where=f"row {row}"
            )
        if output_tokens < 1 or not stages:
            raise InputError(
                "needs output_tokens of at least 1 and a node other than the coordinator, 0",
                file=file,
                where=f"row {row}",
            )
        routes[query] = _Route(output_tokens, stages)
    if not routes:
        raise InputError("has no requests", file=file)
    return routes


def _node_names(folder: Path) -> dict[int, str]:
    file = folder / "nodes.json"
    if not file.exists():
        return {}
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
        return {int(number) - 1: str(name) for number, name in data.items() if int(number) > 0}
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(
            'should be an object such as {"0": "coordinator", "1": "a100-0"}', file=file
        ) from error


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


def _passes(
    file: Path, text: str, routes: Mapping[int, _Route]
) -> tuple[Passes, list[int], list[int]]:
    lines = text.splitlines()
    if not lines or tuple(lines[0].split(",")) != EVENT_COLUMNS:
        raise InputError(f"should begin with {','.join(EVENT_COLUMNS)}", file=file, where="row 1")
    events = []
    for row, line in enumerate(lines[1:], start=2):
        try:
            events.append((row, _event(line, routes)))
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


def _event(line: str, routes: Mapping[int, _Route]) -> _Event:
    """Read one row; raises ValueError if it is invalid."""
    time_text, query_text, direction, phase, context, tokens = line.split(",")
    at_s, query = float(time_text), int(query_text)
    if not 0 <= at_s < inf:
        raise ValueError(f"time {time_text} should be finite and not negative")
    if phase not in ("prompt", "decode") or direction not in ("in", "out"):
        raise ValueError("direction is in or out, phase is prompt or decode")
    if query not in routes:
        raise ValueError(f"request {query} has no route")
    return _Event(at_s, query, direction == "out", phase == "prompt", int(context), int(tokens))


def _triggers(passes: Passes, num_requests: int) -> dict[int, Trigger]:
    """For requests that left at the instant at which another came back: that other request."""
    last_row = {number: row for row, number in enumerate(passes.request.tolist())}
    came_back: dict[float, list[Trigger]] = {}
    for row, number in enumerate(passes.request.tolist()):
        at = float(passes.end_s[row])
        if at == inf:
            continue
        if passes.is_prompt[row]:
            came_back.setdefault(at, []).append(Trigger(number, is_end=False))
        if last_row[number] == row:
            came_back.setdefault(at, []).append(Trigger(number, is_end=True))
    found: dict[int, Trigger] = {}
    for row in np.flatnonzero(passes.is_prompt).tolist():
        causes = came_back.get(float(passes.start_s[row]))
        if causes:
            found[int(passes.request[row])] = causes.pop(0)
    return found


def tokens_by_node(run: RecordedRun) -> dict[str, int]:
    """Tokens x layers that each node ran in passes that came back, by name."""
    per_request: Counter[int] = Counter()
    passes = run.passes
    done = np.isfinite(passes.end_s)
    for number, tokens in zip(
        passes.request[done].tolist(), passes.num_tokens[done].tolist(), strict=True
    ):
        per_request[number] += tokens
    found: Counter[str] = Counter()
    for number, request in enumerate(run.requests):
        for stage in request.stages:
            found[run.node_names[stage.node]] += per_request[number] * stage.num_layers
    return dict(found)
