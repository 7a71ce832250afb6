"""Head-of-line blocking: how long prompts and decodes take through a placement, in the mean.

This is the queueing model of :mod:`helixsim.planner.simulated.surrogate`. Requests pass nodes and
links in order, so a decode behind a prompt waits until the prompt is done, on every node and link
that both take.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, inf

from helixsim.planner.simulated.step_times import DecodeTimes

_BATCH_ROUNDS, _FIRST_BATCH = 3, 10
"""Rounds of the fixed-point iteration for the size of a batch of decodes, and its first guess."""
_NEARLY_FULL = 0.97
"""Largest share of its time that a node or link is busy with prompts: at 1, waiting diverges."""
_FAST_LINK_S = 2e-3
"""Time of a prompt on a link, in seconds, up to which blocking there is neglected: it is small
against the time of a decode on a node."""


@dataclass(slots=True)
class LinkModel:
    """A link that requests take, or equal links from alike nodes to alike nodes.

    Attributes
    ----------
    target
        Number of the machine, or of the group of alike nodes, that it leads to.
    share
        Share of all requests that take each link.
    out_share
        Share of the requests at its source that take each link.
    latency_s, decode_latency_s
        Propagation time in seconds, of a prompt and of a decode.
    prompt_s, decode_s
        Transmission time in seconds of a mean prompt, and of one token.
    count
        Number of links.
    sources
        Number of links that lead to one target.
    """

    target: int
    share: float
    out_share: float
    latency_s: float
    decode_latency_s: float
    prompt_s: float
    decode_s: float
    count: int = 1
    sources: int = 1


@dataclass(slots=True)
class NodeModel:
    """A node that requests pass, or alike nodes with the same layers and equal shares.

    Attributes
    ----------
    node
        Its number, or that of the group.
    share
        Share of all requests that pass each node.
    prompt_s
        Time in seconds that a node computes on a mean prompt.
    decodes
        Times of batches of decodes on a node.
    links
        The outgoing links.
    count
        Number of nodes.
    holds_all
        Whether it holds all layers, and decodes stay until they are done.
    """

    node: int
    share: float
    prompt_s: float
    decodes: DecodeTimes
    links: list[LinkModel]
    count: int = 1
    holds_all: bool = False


class BlockingModel:
    """Mean latencies of prompts and decodes through one placement, by the rate of requests.

    Parameters
    ----------
    nodes
        The nodes that requests pass, in the order of their layers.
    first_links
        The links from the coordinator.
    output_tokens
        Mean number of decodes of a request.
    num_machines
        Number of nodes or groups, the coordinator included.
    num_chunks
        Chunks of a mean prompt where they leave in a stream: decodes run between them, so that
        none stays behind a prompt on a node. None for whole prompts.
    prompt_spread
        Mean of the squares of the lengths of prompts over the square of their mean, at least 1: a
        decode meets long prompts more often than short ones, and a prompt that it meets is this
        many times as long as the mean.
    """

    def __init__(
        self,
        nodes: Sequence[NodeModel],
        first_links: list[LinkModel],
        output_tokens: float,
        num_machines: int,
        num_chunks: float | None = None,
        prompt_spread: float = 1.0,
    ) -> None:
        self._nodes = nodes
        self._first_links = first_links
        self._output_tokens = output_tokens
        self._num_machines = num_machines
        self._num_chunks = num_chunks
        self._prompt_spread = prompt_spread

    def most_requests_per_s(self) -> float:
        """Requests per second at which prompts alone keep some node or link busy."""
        most = min(_NEARLY_FULL / (node.share * node.prompt_s) for node in self._nodes)
        for links in (self._first_links, *(node.links for node in self._nodes)):
            for link in links:
                if link.share > 0 and link.prompt_s > 0:
                    busy_s = link.prompt_s + self._output_tokens * link.decode_s
                    most = min(most, _NEARLY_FULL / (link.share * busy_s))
        return most

    def latencies(self, rate: float) -> tuple[float, float] | None:
        """Mean prompt and decode latency in seconds at a rate of requests per second.

        None if a node cannot process that many.
        """
        behind = [0.0] * self._num_machines  # share x probability to arrive behind a prompt
        prompt_sum, decode_sum = self._pass_links(self._first_links, 0.0, rate, behind)
        slowest_s = 0.0
        for node in self._nodes:
            found = self._pass_node(node, rate, behind[node.node] / node.share)
            if found is None:
                return None
            prompt_s, decode_s, chance = found
            weight = node.count * node.share
            prompt_sum += weight * prompt_s
            decode_sum += weight * decode_s
            slowest_s = max(slowest_s, prompt_s)
            prompt_s, decode_s = self._pass_links(node.links, chance, rate, behind)
            prompt_sum += prompt_s
            decode_sum += decode_s
        if self._num_chunks is not None:  # the other chunks follow the first
            prompt_sum += (self._num_chunks - 1) * slowest_s
        return prompt_sum, decode_sum

    def _pass_node(
        self, node: NodeModel, rate: float, held: float
    ) -> tuple[float, float, float] | None:
        """Time of a prompt and of a decode at a node, and how a decode leaves it.

        Parameters
        ----------
        node, rate
            The node, and requests per second.
        held
            Probability that a decode arrives behind a prompt.

        Returns
        -------
        tuple or None
            Seconds of a prompt, seconds of a decode, probability that a decode leaves behind a
            prompt; None if the node cannot process that many requests.
        """
        prompts = rate * node.share
        decodes = prompts * self._output_tokens
        busy = prompts * node.prompt_s
        free = 1 - busy
        batch, decode_s = self._batch(node, decodes / free)
        if batch == inf:
            return None
        waiting_s = decode_s / 2 * min(1.0, decodes / batch * decode_s)
        if self._num_chunks is not None:
            # A decode finds a chunk in service, or a chunk's turn has come before it; no decode
            # stays behind.
            chunk_s = node.prompt_s / self._num_chunks
            wait_s = waiting_s + busy * chunk_s / free
            return chunk_s + decode_s + wait_s, decode_s + wait_s, 0.0
        if node.holds_all:
            # Between two steps of a decode, prompts run that have arrived since.
            rest_s = self._prompt_spread * node.prompt_s / 2 / free
            return node.prompt_s + decode_s / 2 + busy * rest_s + waiting_s, decode_s / free, 0.0
        # Mean residual time of the prompt in service (M/G/1), and the probability to find one.
        met_s = self._prompt_spread * node.prompt_s
        rest_s = met_s / 2 / free
        caught = (1 - held) * (1 - exp(-busy))
        return (
            node.prompt_s + decode_s / 2 + busy * rest_s + waiting_s,
            decode_s + waiting_s + held * max(0.0, met_s - decode_s) + caught * rest_s,
            min(1.0, held + caught),
        )

    def _batch(self, node: NodeModel, decodes_per_s: float) -> tuple[float, float]:
        """Decodes that arrive while a batch runs, and the time in seconds of a batch of these."""
        times = node.decodes
        most = times.most
        batch, decode_s = 1.0, times(min(_FIRST_BATCH, most))
        for _ in range(_BATCH_ROUNDS):
            batch = max(1.0, decodes_per_s * decode_s)
            if batch >= most:
                return inf, inf
            decode_s = times(int(batch))
        return batch, decode_s

    def _pass_links(
        self, links: list[LinkModel], chance: float, rate: float, behind: list[float]
    ) -> tuple[float, float]:
        """Time of a prompt and of a decode on the outgoing links of a machine, weighted by share.

        Parameters
        ----------
        links, rate
            The links, and requests per second.
        chance
            Probability that a decode leaves the machine directly behind a prompt.
        behind
            Per machine, share x probability to arrive behind a prompt; the targets are added to.
        """
        prompt_sum = decode_sum = 0.0
        for link in links:
            prompt_s, share = link.prompt_s, link.share
            weight = link.count * share
            same_link = chance * link.out_share
            if prompt_s <= _FAST_LINK_S:
                prompt_sum += weight * (link.latency_s + prompt_s)
                decode_sum += weight * (link.decode_latency_s + link.decode_s)
                behind[link.target] += link.sources * share * same_link
                continue
            prompts = rate * share
            free = 1 - prompts * (prompt_s + self._output_tokens * link.decode_s)
            met_s = self._prompt_spread * prompt_s
            rest_s = met_s / 2 / free
            caught = (1 - same_link) * (1 - exp(-prompts * prompt_s))
            prompt_sum += weight * (link.latency_s + prompt_s + prompts * prompt_s * rest_s)
            held_s = same_link * met_s + caught * rest_s
            decode_sum += weight * (link.decode_latency_s + link.decode_s + held_s)
            behind[link.target] += link.sources * share * (same_link + caught)
        return prompt_sum, decode_sum
