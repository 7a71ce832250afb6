"""Records the measurements of a run while it runs."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import isnan, nan

from helixsim.control.routing.policy import Rejection
from helixsim.metrics.sample import Sample
from helixsim.requests import Request


@dataclass(slots=True)
class Columns:
    """A table that grows by rows and is stored by columns: typed arrays, or lists of text."""

    names: tuple[str, ...]
    types: str
    values: list[array[float] | list[str | None]] = field(init=False)

    def __post_init__(self) -> None:
        """Create empty columns; type ``s`` is text."""
        self.values = [[] if code == "s" else array(code) for code in self.types]

    def add(self, *row: object) -> None:
        """Add a row."""
        for column, value in zip(self.values, row, strict=True):
            column.append(value)  # type: ignore[arg-type]

    def copy(self) -> Columns:
        """A table with the same rows."""
        found = Columns(self.names, self.types)
        found.values = [column[:] for column in self.values]
        return found

    def sort(self) -> None:
        """Put the rows in order of the first column."""
        first = self.values[0]
        order = sorted(range(len(self)), key=lambda row: first[row])  # type: ignore[arg-type,return-value]
        for number, column in enumerate(self.values):
            if isinstance(column, list):
                self.values[number] = [column[row] for row in order]
            else:
                moved = column[:0]  # empty, of the same type
                moved.extend(column[row] for row in order)
                self.values[number] = moved

    def as_dict(self) -> dict[str, array[float] | list[str | None]]:
        """The columns by name."""
        return dict(zip(self.names, self.values, strict=True))

    def __len__(self) -> int:
        """Count the rows."""
        return len(self.values[0])


def _request_columns(*, has_classes: bool, several_front_ends: bool) -> Columns:
    names, types = _REQUEST_COLUMNS
    further = (*("class",) * has_classes, *("front_end",) * several_front_ends)
    return Columns((*names, *further), types + "s" * len(further))


_REQUEST_COLUMNS = (
    (
        "request",
        "status",
        "arrival_s",
        "dispatch_s",
        "first_token_s",
        "end_s",
        "prompt_tokens",
        "output_tokens",
        "decode_tokens",
        "ttft_s",
        "tpot_s",
        "e2e_s",
        "route",
        "restarts",
        "preemptions",
        "cached_tokens",
    ),
    "qsddddqqqdddsqqq",
)


class RunRecorder:
    """Counts, samples and rows of one run; see :class:`helixsim.control.recorder.Recorder`.

    Parameters
    ----------
    window_start_s, window_end_s
        Passes and requests that end in it, both ends included, count for throughput and
        latencies.
    node_names
        Names of the nodes, for routes in the rows.
    keep_iterations
        Whether to record a row for every pass.
    has_classes
        Whether requests are of classes of users, which a column names.
    front_end_names
        Names of the front ends, for a column where there are several.
    """

    def __init__(
        self,
        window_start_s: float,
        window_end_s: float,
        node_names: tuple[str, ...],
        *,
        keep_iterations: bool,
        has_classes: bool = False,
        front_end_names: tuple[str, ...] = (),
    ) -> None:
        self._has_classes = has_classes
        self.window_start_s = window_start_s
        self.window_end_s = window_end_s
        self._names = node_names
        self._front_end_names = front_end_names if len(front_end_names) > 1 else ()
        self._route_texts: dict[tuple[tuple[int, int, int], ...], str] = {}
        self.prompt_latency_s = Sample()
        self.decode_latency_s = Sample()
        self.ttft_s = Sample()
        self.tpot_s = Sample()
        self.e2e_s = Sample()
        self._has_finished = False
        self.window_prompt_tokens = 0
        self.num_arrived = 0
        self.num_completed = 0
        self.num_failed = 0
        self.num_cancelled = 0
        self.rejected_for = dict.fromkeys(Rejection, 0)
        self.num_decode_tokens = 0
        self.num_prompt_tokens = 0
        self.num_cached_tokens = 0
        self.requests = _request_columns(
            has_classes=has_classes, several_front_ends=bool(self._front_end_names)
        )
        self.iterations = (
            Columns(("request", "iteration", "phase", "start_s", "end_s"), "qqsdd")
            if keep_iterations
            else None
        )

    @property
    def num_preemptions(self) -> int:
        """Preemptions of the requests that have a row."""
        return sum(self.requests.as_dict()["preemptions"])  # type: ignore[arg-type]

    @property
    def nodes_of_routes(self) -> frozenset[int]:
        """Numbers of the nodes on the last routes of the requests that have a row."""
        return frozenset(node for stages in self._route_texts for node, _, _ in stages)

    @property
    def num_rejected(self) -> int:
        """Requests that were rejected, for any reason."""
        return sum(self.rejected_for.values())

    def arrived(self, request: Request) -> None:
        """A request has reached the coordinator."""
        self.num_arrived += 1

    def rejected(self, request: Request, reason: Rejection) -> None:
        """A request has been rejected."""
        self.rejected_for[reason] += 1
        self._add_row(request, f"rejected: {reason}", nan)

    def prompt_ended(self, request: Request, now: float) -> None:
        """The prefill of a request has come back."""
        self.num_prompt_tokens += request.prompt_tokens
        self.num_cached_tokens += request.num_cached_tokens
        if self.window_start_s <= now <= self.window_end_s:
            self.prompt_latency_s.append(now - request.dispatched_s)
            self.ttft_s.append(now - request.arrival_s)
            self.window_prompt_tokens += request.prompt_tokens
        if self.iterations is not None:
            self.iterations.add(request.index, 0, "prompt", request.dispatched_s, now)

    def decodes_ended(self, requests: Sequence[Request], times: Sequence[float]) -> None:
        """Decodes have come back at these times, in order."""
        self.num_decode_tokens += len(requests)
        start, end = self.window_start_s, self.window_end_s
        passes = zip(requests, times, strict=True)
        if start <= times[0] and times[-1] <= end:
            self.decode_latency_s.extend([now - request.dispatched_s for request, now in passes])
        else:
            self.decode_latency_s.extend(
                [now - request.dispatched_s for request, now in passes if start <= now <= end]
            )
        if self.iterations is not None:
            for request, now in zip(requests, times, strict=True):
                self.iterations.add(
                    request.index, request.num_output_tokens, "decode", request.dispatched_s, now
                )

    def ended(self, request: Request, now: float) -> None:
        """The last pass of a request has come back."""
        self.num_completed += 1
        self._add_row(request, "completed", now)
        if self.window_start_s <= now <= self.window_end_s:
            self.e2e_s.append(now - request.arrival_s)
            if request.num_output_tokens:
                self.tpot_s.append((now - request.first_token_s) / request.num_output_tokens)

    def failed(self, request: Request, reason: str, now: float) -> None:
        """A request was admitted, but cannot be completed."""
        self.num_failed += 1
        self._add_row(request, f"failed: {reason}", nan)

    def cancelled(self, request: Request, now: float) -> None:
        """A request was cancelled by its user."""
        self.num_cancelled += 1
        self._add_row(request, "cancelled", nan)

    def finish(self, active: Iterable[Request], waiting: Iterable[Request] = ()) -> None:
        """Add the rows of requests that have not ended when the run does; sort all rows."""
        self._add_unended(self.requests, active, waiting)
        self._has_finished = True

    def all_requests(self, active: Iterable[Request], waiting: Iterable[Request] = ()) -> Columns:
        """The table of requests, with rows of unended requests, too; after the end, as it is.

        While the run goes on, a new table.
        """
        if self._has_finished:
            return self.requests
        found = self.requests.copy()
        self._add_unended(found, active, waiting)
        return found

    def _add_unended(
        self, table: Columns, active: Iterable[Request], waiting: Iterable[Request]
    ) -> None:
        for status, requests in (("in flight", active), ("waiting", waiting)):
            for request in requests:
                table.add(*self._row(request, status, nan))
        table.sort()

    def compact(self) -> None:
        """Keep memory bounded; called at every sample of the gauges."""
        for sample in (self.prompt_latency_s, self.decode_latency_s):
            sample.compact()

    def _add_row(self, request: Request, status: str, end_s: float) -> None:
        self.requests.add(*self._row(request, status, end_s))

    def _row(self, request: Request, status: str, end_s: float) -> tuple[object, ...]:
        decodes = (
            max(request.num_output_tokens - 1, 0) if isnan(end_s) else request.num_output_tokens
        )
        return (
            request.index,
            status,
            request.arrival_s,
            request.first_dispatch_s,
            request.first_token_s,
            end_s,
            request.prompt_tokens,
            request.output_tokens,
            decodes,
            request.first_token_s - request.arrival_s,
            (end_s - request.first_token_s) / decodes if decodes else nan,
            end_s - request.arrival_s,
            self._route_text(request),
            request.num_restarts,
            request.num_preemptions,
            request.num_cached_tokens,
            *((request.user_class,) if self._has_classes else ()),
            *([self._front_end_names[request.front_end]] if self._front_end_names else ()),
        )

    def _route_text(self, request: Request) -> str | None:
        if request.route is None:
            return None
        key = tuple(
            (stage.node, stage.start_layer, stage.end_layer) for stage in request.route.stages
        )
        text = self._route_texts.get(key)
        if text is None:
            text = " ".join(f"{self._names[node]}[{start}:{end}]" for node, start, end in key)
            self._route_texts[key] = text
        return text
