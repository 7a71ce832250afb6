"""Logs of all passes that leave the coordinator and return, in the format of recorded runs.

A run keeps them in memory for its results (:class:`EventLog`). A server, which runs without end,
keeps none (:class:`NoEvents`), or writes them to files as they come (:class:`EventWriter`).
"""

from __future__ import annotations

import gzip
import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TextIO

from helixsim.errors import InputError
from helixsim.metrics.output import EVENT_COLUMNS
from helixsim.metrics.recorder import Columns

if TYPE_CHECKING:
    from helixsim.placement.topology import Topology
    from helixsim.requests import Request

_HEAD = ",".join(EVENT_COLUMNS) + "\n"


class Events(Protocol):
    """What is told of every pass.

    Attributes
    ----------
    start_s
        When load generation began.
    """

    start_s: float

    def pass_sent(self, request: Request, now: float) -> None:
        """A pass leaves the coordinator."""
        ...

    def pass_returned(self, request: Request, now: float) -> None:
        """A pass has returned; the request's counters have not changed yet."""
        ...

    def route_assigned(self, request: Request) -> None:
        """A request has a route; after a restart, the new route replaces it."""
        ...

    def request_ended(self, index: int) -> None:
        """A request has ended, in any way."""
        ...


class NoEvents:
    """Keeps nothing; see :class:`Events`."""

    start_s = 0.0

    def pass_sent(self, request: Request, now: float) -> None:
        """Ignored."""

    def pass_returned(self, request: Request, now: float) -> None:
        """Ignored."""

    def route_assigned(self, request: Request) -> None:
        """Ignored."""

    def request_ended(self, index: int) -> None:
        """Ignored."""


class EventLog:
    """The passes of a run, and the routes of its requests; see :class:`Events`.

    Attributes
    ----------
    table
        Time since load generation began, index of the request, ``out`` or ``in``, ``prompt`` or
        ``decode``, tokens in the KV caches before the pass, and tokens of the pass.
    """

    def __init__(self) -> None:
        self.start_s = 0.0
        self.table = Columns(EVENT_COLUMNS, "dqssqq")
        self._routes: dict[int, dict[str, object]] = {}

    def pass_sent(self, request: Request, now: float) -> None:
        """Log a pass that leaves the coordinator."""
        self.table.add(*_row(request, now - self.start_s, "out"))

    def pass_returned(self, request: Request, now: float) -> None:
        """Log a pass that has returned, before the request's counters change."""
        self.table.add(*_row(request, now - self.start_s, "in"))

    def route_assigned(self, request: Request) -> None:
        """Log the route of a request; after a restart, the new route replaces it."""
        self._routes[request.index] = _route(request)

    def request_ended(self, index: int) -> None:
        """Routes of requests that have ended are kept."""

    @property
    def routes(self) -> list[dict[str, object]]:
        """The route of every request that was sent, in the format of recorded runs."""
        return [self._routes[query] for query in sorted(self._routes)]

    def files(self, topology: Topology) -> dict[str, bytes]:
        """The files of a recorded run: :data:`helixsim.metrics.output.RECORDED_FILES`."""
        events = io.StringIO()
        events.write(_HEAD)
        for row in zip(*self.table.values, strict=True):
            events.write(_line(row))
        routes = "".join(json.dumps(route) + "\n" for route in self.routes)
        return {
            "events.csv.gz": gzip.compress(events.getvalue().encode(), mtime=0),
            "routes.jsonl.gz": gzip.compress(routes.encode(), mtime=0),
            "nodes.json": _node_names(topology).encode(),
        }


class EventWriter:
    """Writes a recorded run to files while it goes on; see :class:`Events`.

    In memory are only the routes of requests that have not ended. The files are complete when it is
    closed.

    Parameters
    ----------
    folder
        The folder, new or empty.

    Raises
    ------
    InputError
        If the folder has files, or cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self.start_s = 0.0
        self._folder = folder
        self._routes: dict[int, dict[str, object]] = {}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if any(folder.iterdir()):
                raise InputError("is not empty; give a new folder to --record", file=folder)
            self._events_file = _opened(folder / "events.csv.gz")
            self._routes_file = _opened(folder / "routes.jsonl.gz")
        except OSError as error:
            raise InputError(f"cannot be written: {error.strerror}", file=folder) from error
        self._events_file.write(_HEAD)

    def pass_sent(self, request: Request, now: float) -> None:
        """Write a pass that leaves the coordinator."""
        self._events_file.write(_line(_row(request, now - self.start_s, "out")))

    def pass_returned(self, request: Request, now: float) -> None:
        """Write a pass that has returned, before the request's counters change."""
        self._events_file.write(_line(_row(request, now - self.start_s, "in")))

    def route_assigned(self, request: Request) -> None:
        """Keep the route of a request until it ends; after a restart, the new one replaces it."""
        self._routes[request.index] = _route(request)

    def request_ended(self, index: int) -> None:
        """Write the route of a request, if it had one."""
        if (route := self._routes.pop(index, None)) is not None:
            self._routes_file.write(json.dumps(route) + "\n")

    def close(self, topology: Topology) -> None:
        """Write the rest, and close the files."""
        for index in list(self._routes):
            self.request_ended(index)
        self._events_file.close()
        self._routes_file.close()
        (self._folder / "nodes.json").write_text(_node_names(topology), encoding="utf-8")


def _opened(file: Path) -> TextIO:
    return gzip.open(file, "wt", encoding="utf-8", compresslevel=1)


def _row(request: Request, at_s: float, direction: str) -> tuple[object, ...]:
    return (
        at_s,
        request.index,
        direction,
        "prompt" if request.is_prefill else "decode",
        request.num_computed_tokens,
        request.num_new_tokens,
    )


def _line(row: tuple[object, ...]) -> str:
    at_s, *rest = row
    return f"{at_s:.6f},{','.join(map(str, rest))}\n"


def _route(request: Request) -> dict[str, object]:
    stages = request.route.stages if request.route is not None else []
    # In recorded runs, node 0 is the coordinator, and every route ends with it.
    return {
        "query": request.index,
        "input_tokens": request.prompt_tokens,
        "output_tokens": request.output_tokens,
        "nodes": [*(stage.node + 1 for stage in stages), 0],
        "start_layers": [*(stage.start_layer for stage in stages), -1],
        "end_layers": [*(stage.end_layer for stage in stages), -1],
    }


def _node_names(topology: Topology) -> str:
    names = {"0": "coordinator"} | {str(node.index + 1): node.name for node in topology.nodes}
    return json.dumps(names, indent=2) + "\n"
