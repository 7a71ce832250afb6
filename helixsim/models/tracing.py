"""A trace of what every node and link does, for ui.perfetto.dev or chrome://tracing.

Traced models are models that also tell a :class:`Tracer` what they begin; without a tracer the
plain ones are built, so that a run without a trace costs nothing more. Format: JSON of Google's
"Trace Event Format"; times are microseconds since the start of load generation.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from helixsim.errors import InputError
from helixsim.models.engine_node import EngineNode
from helixsim.models.links import SerialLink, Transfer
from helixsim.models.looping_node import LoopingNode
from helixsim.models.messages import MessageLink
from helixsim.models.paper_node import PaperNode
from helixsim.requests import Request
from helixsim.steps import Batch

if TYPE_CHECKING:
    from helixsim.metrics.result import RunResult
    from helixsim.placement.topology import Topology

_NODES, _LINKS = 1, 2
_US = 1e6
_LANES = 100
"""Lanes of a track, at most."""
_NODE_NAME = re.compile(r"(?P<name>.*) \[(?P<start>\d+):(?P<end>\d+)\]")


@dataclass(frozen=True, slots=True)
class TracedStep:
    """A pass of a node in a trace; times are seconds since the start of load generation."""

    start_s: float
    end_s: float
    prompt_tokens: int
    decodes: int


@dataclass(frozen=True, slots=True)
class NodeTrack:
    """What a node with the layers ``[start_layer, end_layer)`` ran, as a trace has it."""

    node: str
    start_layer: int
    end_layer: int
    steps: list[TracedStep]


def node_tracks(trace: bytes) -> list[NodeTrack]:
    """Read the nodes and their passes from the file that :meth:`Tracer.trace_bytes` makes.

    Raises
    ------
    InputError
        If it is no such file.
    """
    try:
        events = json.loads(gzip.decompress(trace))["traceEvents"]
        of_nodes = [event for event in events if event["pid"] == _NODES]
        tracks = {}
        for event in of_nodes:
            if event["name"] == "thread_name":
                name = _NODE_NAME.fullmatch(event["args"]["name"])
                assert name is not None
                tracks[event["tid"] // _LANES] = NodeTrack(
                    name["name"], int(name["start"]), int(name["end"]), []
                )
        for event in of_nodes:
            if event["ph"] == "X":
                start_s, found = event["ts"] / _US, event["args"]
                tracks[event["tid"] // _LANES].steps.append(
                    TracedStep(
                        start_s,
                        start_s + event["dur"] / _US,
                        found["prompt_tokens"],
                        found["decodes"],
                    )
                )
    except (OSError, EOFError, ValueError, LookupError, TypeError, AssertionError) as error:
        raise InputError("is no trace of helixsim run --trace", file="trace.json.gz") from error
    return list(tracks.values())


class Tracer:
    """Collects what happens within a span of time.

    Parameters
    ----------
    start_s, end_s
        The span, in simulated seconds. What begins in it is kept.
    zero_s
        Simulated time that is zero in the trace.

    Attributes
    ----------
    slices
        (process, track, start, end, name, arguments) of everything that took time.
    """

    def __init__(self, start_s: float, end_s: float, zero_s: float) -> None:
        self.start_s = start_s
        self.end_s = end_s
        self._zero_s = zero_s
        self.slices: list[tuple[int, int, float, float, str, dict[str, Any]]] = []
        self._steps: dict[int, list[tuple[float, int]]] = {}

    def worked(self, node: int, start_s: float, end_s: float, requests: Iterable[Request]) -> None:
        """A node runs a pass."""
        if not self.start_s <= start_s <= self.end_s:
            return
        batch = Batch.of(list(requests))
        num_decodes = len(batch.requests) - batch.num_prompts
        parts = [f"{batch.num_prompts} prefill"] * (batch.num_prompts > 0)
        parts += [f"{num_decodes} decode"] * (num_decodes > 0)
        arguments = {
            "prompt_tokens": batch.prompt_tokens,
            "decodes": num_decodes,
            "requests": [request.index for request in batch.requests],
        }
        self.slices.append((_NODES, node, start_s, end_s, ", ".join(parts), arguments))
        for request in batch.requests:
            self._steps.setdefault(request.index, []).append((start_s, node))

    def carried(self, link: int, start_s: float, end_s: float, **arguments: float) -> None:
        """A link carries something."""
        if self.start_s <= start_s <= self.end_s:
            self.slices.append((_LINKS, link, start_s, end_s, "send", arguments))

    def trace_bytes(self, topology: Topology, result: RunResult) -> bytes:
        """The trace as a gzipped file; queues and KV caches are counters, as sampled."""
        events = [*self._tracks(topology), *self._slices(), *self._flows(), *self._counters(result)]
        text = json.dumps({"displayTimeUnit": "ms", "traceEvents": events}, separators=(",", ":"))
        return gzip.compress(text.encode(), mtime=0)

    def _at(self, time_s: float) -> float:
        return round((time_s - self._zero_s) * _US, 3)

    def _tracks(self, topology: Topology) -> Iterable[dict[str, Any]]:
        yield _named("process_name", _NODES, 0, "nodes")
        yield _named("process_name", _LINKS, 0, "links")
        for node in topology.nodes:
            name = f"{node.name} [{node.start_layer}:{node.end_layer}]"
            yield _named("thread_name", _NODES, node.index, name)
        lanes = {(lane, track) for process, track, lane, *_ in self._laned() if process == _LINKS}
        for lane, track in sorted(lanes):
            link = topology.links[track]
            name = f"{topology.name(link.source)} to {topology.name(link.target)}"
            yield _named(
                "thread_name", _LINKS, _lane(track, lane), name + f" ({lane + 1})" * (lane > 0)
            )

    def _laned(self) -> Iterable[tuple[int, int, int, float, float, str, dict[str, Any]]]:
        """Slices with a lane of their track each, so that no two of a lane overlap."""
        free: dict[tuple[int, int], list[float]] = {}
        for process, track, start, end, name, arguments in sorted(
            self.slices, key=lambda piece: piece[:4]
        ):
            lanes = free.setdefault((process, track), [])
            lane = next((n for n, until in enumerate(lanes) if until <= start), len(lanes))
            lanes[lane : lane + 1] = [end]
            yield process, track, lane, start, end, name, arguments

    def _slices(self) -> Iterable[dict[str, Any]]:
        for process, track, lane, start, end, name, arguments in self._laned():
            begins = self._at(start)
            yield {
                "ph": "X",
                "pid": process,
                "tid": _lane(track, lane),
                "ts": begins,
                "dur": round(self._at(end) - begins, 3),
                "name": name,
                "args": arguments,
            }

    def _flows(self) -> Iterable[dict[str, Any]]:
        """One flow for each request that is in two passes at least."""
        for index, steps in sorted(self._steps.items()):
            if len(steps) < 2:
                continue
            for place, (at, node) in enumerate(sorted(steps)):
                last = place == len(steps) - 1
                event: dict[str, Any] = {
                    "ph": "s" if not place else "f" if last else "t",
                    "cat": "request",
                    "name": f"request {index}",
                    "id": index,
                    "pid": _NODES,
                    "tid": _lane(node, 0),
                    "ts": self._at(at),
                }
                yield event | ({"bp": "e"} if last else {})

    def _counters(self, result: RunResult) -> Iterable[dict[str, Any]]:
        rows = result.tables["nodes"].as_dict()
        columns = ("time_s", "node", "waiting", "kv_used_token_layers")
        for at, node, waiting, used in zip(*(rows[name] for name in columns), strict=True):
            if self.start_s <= float(at or 0) <= self.end_s:
                for name, value in (("waiting", waiting), ("KV token-layers", used)):
                    yield {
                        "ph": "C",
                        "pid": _NODES,
                        "ts": self._at(float(at or 0)),
                        "name": f"{node} {name}",
                        "args": {name: value},
                    }


def _named(kind: str, process: int, track: int, name: str) -> dict[str, Any]:
    track = _lane(track, 0) if kind == "thread_name" and process == _NODES else track
    return {"ph": "M", "pid": process, "tid": track, "name": kind, "args": {"name": name}}


def _lane(track: int, lane: int) -> int:
    """The number of a track's lane; tracks of one lane keep their order."""
    return track * _LANES + lane + 1


def traced_paper_node(tracer: Tracer) -> type[PaperNode]:
    """Nodes of the paper's physics that tell a tracer of their batches."""

    class TracedPaperNode(PaperNode):
        def _wake(self) -> None:
            num_batches = self.num_batches
            super()._wake()
            if self.num_batches > num_batches:
                step = self.scheduler.running
                assert step is not None
                now = self._environment.now
                tracer.worked(self.index, now, self._wakes_at, step.passes[0].requests)

    return TracedPaperNode


def traced_engine_node(tracer: Tracer) -> type[EngineNode]:
    """Nodes of the calibrated physics that tell a tracer of their passes."""

    class TracedEngineNode(EngineNode):
        def _begin_step(self, now: float) -> None:
            num_batches = self.num_batches
            super()._begin_step(now)
            if self.num_batches == num_batches:
                return
            step, start = self._step, now
            assert step is not None
            for end, number in self._pass_ends:
                if step.passes[number].requests:
                    tracer.worked(self.index, start, end, step.passes[number].requests)
                start = end

    return TracedEngineNode


def traced_looping_node(tracer: Tracer) -> type[LoopingNode]:
    """Nodes whose decodes loop that tell a tracer of their steps, one by one."""

    class TracedLoopingNode(LoopingNode):
        repeats = False

        def _begin_step(self, now: float) -> None:
            super()._begin_step(now)
            if self._step is not None:
                tracer.worked(self.index, now, self._wakes_at, self._step.passes[0].requests)

    return TracedLoopingNode


def traced_link(tracer: Tracer) -> type[SerialLink]:
    """Links of the paper's physics that tell a tracer of what they carry."""

    class TracedLink(SerialLink):
        def _depart(self, transfer: Transfer) -> None:
            tracer.carried(
                self.index,
                transfer.first_started_s,
                transfer.sent_s[-1],
                requests=len(transfer.requests),
                tokens=transfer.num_tokens,
            )
            super()._depart(transfer)

    return TracedLink


def traced_message_link(tracer: Tracer) -> type[MessageLink]:
    """Links of the calibrated physics that tell a tracer of their messages."""

    class TracedMessageLink(MessageLink):
        def carry(self, num_bytes: float, started_s: float, handed_s: float) -> float:
            begins = max(started_s, self.free_s)
            arrived = super().carry(num_bytes, started_s, handed_s)
            tracer.carried(self.index, begins, self.free_s, bytes=num_bytes)
            return arrived

    return TracedMessageLink
