"""Adaptive scheduling: the maximum flow is the plan, measured load decides within bounds.

At every machine the successors take turns as in :mod:`helixsim.control.routing.maxflow`. Two things
change a turn:

- **Queues.** A prompt takes another successor if the tokens that wait at its own would take longer
  than at the other, by more than a step. The other may get ahead of its turn by a second of its
  flow only, so that over time each successor still carries its share.
- **Objectives.** Where a scenario has limits for the time to the first token or per output token
  (``slo``), a successor whose requests, as measured, do not keep them is passed over while there is
  another whose requests do: on average, or better, with a time per token within the limit of nine
  in ten: a slow pipeline beside fast machines gets the requests that the fast
  ones cannot serve in time, and a request now and then, by which it is measured again.

Without queues that differ and without objectives, routes are as with ``maxflow``.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isnan

from helixsim.control.routing.maxflow import MaxFlowPolicy
from helixsim.control.routing.policy import PolicyInputs
from helixsim.placement.topology import PlacedLink
from helixsim.requests import Request

_MOST_AHEAD_S = 1.0
"""How far a successor may get ahead of its turn, in seconds of its flow."""
_MEMORY = 0.1
"""Weight of a new observation."""
_MISS_MEMORY = 0.05
"""Weight of a new request in the share of requests that miss a limit."""
_MOST_SLOW = 0.1
"""Share of a node's requests that may miss the limit of the time per token where others do better:
by the mean alone, the node would be loaded until half of them do."""
_PROBE_EVERY = 50
"""A successor that is passed over gets one request of this number all the same."""


class MeasuredLatencies:
    """Latencies of the requests that went through each node, as exponential averages.

    Parameters
    ----------
    tpot_limit_s
        Limit of the time per token after the first; None without one.

    Attributes
    ----------
    first_token_s, token_s
        Node -> time from leaving the coordinator to the first token; mean time per further token.
    slow_share
        Node -> share of the requests whose mean time per further token exceeds the limit.
    """

    def __init__(self, tpot_limit_s: float | None) -> None:
        self._tpot_limit_s = tpot_limit_s
        self.first_token_s: dict[int, float] = {}
        self.token_s: dict[int, float] = {}
        self.slow_share: dict[int, float] = {}

    def ended(self, request: Request) -> None:
        """Take note of a request that has ended, or was abandoned."""
        if request.route is None or isnan(request.first_token_s) or request.attempt:
            return
        nodes = [stage.node for stage in request.route.stages]
        first_s = request.first_token_s - request.first_dispatch_s
        _average(self.first_token_s, nodes, first_s, _MEMORY, first_s)
        if request.num_output_tokens > 1 and self._tpot_limit_s is not None:
            # The last pass left when the token before it came.
            seconds = request.dispatched_s - request.first_token_s
            token_s = seconds / (request.num_output_tokens - 1)
            _average(self.token_s, nodes, token_s, _MEMORY, token_s)
            is_slow = float(token_s > self._tpot_limit_s)
            _average(self.slow_share, nodes, is_slow, _MISS_MEMORY, 0.0)


def _average(
    means: dict[int, float], nodes: Sequence[int], value: float, weight: float, first: float
) -> None:
    for node in nodes:
        before = means.get(node, first)
        means[node] = before + weight * (value - before)


class AdaptivePolicy(MaxFlowPolicy):
    """Routes by the maximum flow, and within bounds by queues and measured latencies."""

    def __init__(self, inputs: PolicyInputs) -> None:
        super().__init__(inputs)
        self._view = inputs.view
        self._rates = [max(rate, 1e-9) for rate in inputs.flow.compute_tokens_per_s]
        self._ttft_limit_s, self._tpot_limit_s = inputs.ttft_limit_s, inputs.tpot_limit_s
        self._latencies = MeasuredLatencies(self._tpot_limit_s)
        self._passed_over: dict[int, int] = {}

    def finished(self, request: Request) -> None:
        """Release what was expected of the request's KV cache; learn how long it took."""
        super().finished(request)
        self._latencies.ended(request)

    def _pick(self, links: Sequence[PlacedLink], request: Request) -> PlacedLink:
        """The link whose turn it is, of links that keep the objectives, if its queue is short."""
        chosen = super()._pick(links, request)
        if len(links) == 1 or self._topology.is_front_end(chosen.target):
            return chosen
        keeping = self._keeping(links)
        if keeping is not links:
            chosen = super()._pick(keeping, request)
        return self._less_busy(keeping, chosen, request)

    def _keeping(self, links: Sequence[PlacedLink]) -> Sequence[PlacedLink]:
        """Links whose nodes keep the objectives; all of them if all do, or none does."""
        if self._ttft_limit_s is None and self._tpot_limit_s is None:
            return links
        keeping = [link for link in links if self._keeps(link.target)]
        slow_share = self._latencies.slow_share
        quick = [link for link in keeping if slow_share.get(link.target, 0.0) <= _MOST_SLOW]
        keeping = quick or keeping
        if not keeping or len(keeping) == len(links):
            return links
        for link in links:
            if link in keeping:
                continue
            count = self._passed_over[link.target] = self._passed_over.get(link.target, 0) + 1
            if count >= _PROBE_EVERY:
                self._passed_over[link.target] = 0
                return [link]
        return keeping

    def _keeps(self, node: int) -> bool:
        latencies = self._latencies
        if self._tpot_limit_s is not None and (
            latencies.token_s.get(node, 0.0) > self._tpot_limit_s
        ):
            return False
        return self._ttft_limit_s is None or (
            latencies.first_token_s.get(node, 0.0) + self._queue_s(node) <= self._ttft_limit_s
        )

    def _less_busy(
        self, links: Sequence[PlacedLink], chosen: PlacedLink, request: Request
    ) -> PlacedLink:
        """The link to a node with a shorter queue, where the chosen one's is longer by a step."""
        nodes = self._view.nodes
        if not nodes:
            return chosen
        queue_s = self._queue_s(chosen.target)
        if queue_s <= nodes[chosen.target].step_s:
            return chosen
        limit = self._load_after(chosen, request) + _MOST_AHEAD_S
        best, least_s = chosen, queue_s - nodes[chosen.target].step_s
        for link in links:
            if self._load_after(link, request) > limit:
                continue
            seconds = self._queue_s(link.target)
            if seconds < least_s:
                best, least_s = link, seconds
        return best

    def _queue_s(self, node: int) -> float:
        """How long the tokens that wait at a node take there."""
        nodes = self._view.nodes
        return nodes[node].waiting_tokens / self._rates[node] if nodes else 0.0
