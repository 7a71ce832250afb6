"""Read a recorded run: departure and return of every pass, and every route.

A folder holds ``events.csv.gz`` with the columns
:data:`~helixsim.metrics.output.EVENT_COLUMNS`, ``routes.jsonl.gz`` with one object a request, and,
where ``helixreal`` wrote it, ``nodes.json`` with the names of the nodes. docs/replay.md has the
format.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import ceil, inf
from pathlib import Path

import numpy as np

from helixsim.errors import InputError
from helixsim.recorded.events import Passes, read_part, read_passes
from helixsim.requests import Stage

_MINUTE_S = 60.0
_CLOSED_SHARE = 0.5
"""A run in which at least this share of the prompts left at the instant at which a pass came back
had a closed loop."""


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
    num_passes
        Passes that it ran; of a request that had not ended, passes that it would have run.
    stages
        Its route; node numbers are the files' minus one. Empty if the files do not contain it.
    trigger
        The completion at the instant at which it was sent, if there was one.
    """

    query: int
    dispatched_s: float
    prompt_tokens: int
    output_tokens: int
    num_passes: int
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
    def num_without_route(self) -> int:
        """Requests whose route the files do not contain, as when a recording was cut off."""
        return sum(not request.stages for request in self.requests)

    @cached_property
    def has_drained(self) -> bool:
        """Whether all requests had ended at the end of the recording."""
        returned = Counter(self.passes.request[np.isfinite(self.passes.end_s)].tolist())
        return all(
            returned[number] >= request.num_passes for number, request in enumerate(self.requests)
        )

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
    routes = _routes(*read_part(folder, "routes.jsonl"))
    names = _node_names(folder)
    passes, order, prompt_tokens = read_passes(*read_part(folder, "events.csv"))
    lengths = answers(
        passes, [routes[query].output_tokens if query in routes else None for query in order]
    )
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
            *lengths[number],
            routes[query].stages if query in routes else (),
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


def answers(passes: Passes, output_tokens: Sequence[int | None]) -> list[tuple[int, int]]:
    """Output tokens and passes of each request.

    A run has as many passes for each request as output tokens, or one more, as with the paper's
    physics; the ended requests show which. An ended request has the passes that came back. A
    request is in flight if its last pass did not come back. Output tokens that are not known
    (None) follow from the passes.
    """
    total = Counter(passes.request.tolist())
    returned = Counter(passes.request[np.isfinite(passes.end_s)].tolist())
    last_row = {number: row for row, number in enumerate(passes.request.tolist())}
    beyond = [
        int(returned[number] > tokens)
        for number, tokens in enumerate(output_tokens)
        if tokens is not None and returned[number] >= tokens
    ]
    more = round(sum(beyond) / len(beyond)) if beyond else 0
    found = []
    for number, tokens in enumerate(output_tokens):
        if tokens is None:
            found.append((max(total[number] - more, 1), total[number]))
            continue
        has_ended = np.isfinite(passes.end_s[last_row[number]])
        planned = tokens + more
        found.append((tokens, min(returned[number], planned) if has_ended else planned))
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
