"""Log of all passes that leave the coordinator and return, in the format of recorded runs."""

from __future__ import annotations

import gzip
import io
import json
from typing import TYPE_CHECKING

from helixsim.metrics.output import EVENT_COLUMNS
from helixsim.metrics.recorder import Columns

if TYPE_CHECKING:
    from helixsim.placement.topology import Topology
    from helixsim.requests import Request


class EventLog:
    """The passes of a run, and the routes of its requests.

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
        self._add(request, now, "out")

    def pass_returned(self, request: Request, now: float) -> None:
        """Log a pass that has returned, before the request's counters change."""
        self._add(request, now, "in")

    def _add(self, request: Request, now: float, direction: str) -> None:
        self.table.add(
            now - self.start_s,
            request.index,
            direction,
            "prompt" if request.is_prefill else "decode",
            request.num_computed_tokens,
            request.num_new_tokens,
        )

    def route_assigned(self, request: Request) -> None:
        """Log the route of a request; after a restart, the new route replaces it."""
        stages = request.route.stages if request.route is not None else []
        # In recorded runs, node 0 is the coordinator, and every route ends with it.
        self._routes[request.index] = {
            "query": request.index,
            "input_tokens": request.prompt_tokens,
            "output_tokens": request.output_tokens,
            "nodes": [*(stage.node + 1 for stage in stages), 0],
            "start_layers": [*(stage.start_layer for stage in stages), -1],
            "end_layers": [*(stage.end_layer for stage in stages), -1],
        }

    @property
    def routes(self) -> list[dict[str, object]]:
        """The route of every request that was sent, in the format of recorded runs."""
        return [self._routes[query] for query in sorted(self._routes)]

    def files(self, topology: Topology) -> dict[str, bytes]:
        """The files of a recorded run: :data:`helixsim.metrics.output.RECORDED_FILES`."""
        events = io.StringIO()
        events.write(",".join(EVENT_COLUMNS) + "\n")
        for time_s, *rest in zip(*self.table.values, strict=True):
            events.write(f"{time_s:.6f},{','.join(map(str, rest))}\n")
        routes = "".join(json.dumps(route) + "\n" for route in self.routes)
        names = {"0": "coordinator"} | {str(node.index + 1): node.name for node in topology.nodes}
        return {
            "events.csv.gz": gzip.compress(events.getvalue().encode(), mtime=0),
            "routes.jsonl.gz": gzip.compress(routes.encode(), mtime=0),
            "nodes.json": (json.dumps(names, indent=2) + "\n").encode(),
        }
