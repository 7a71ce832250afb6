"""Prompts and decodes on their way: how long each takes, and who holds up whom.

The model of :mod:`helixsim.planner.simulated.surrogate`, on nodes and links as they are passed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, inf

_BATCH_ROUNDS, _FIRST_BATCH = 3, 10
"""A batch is as large as what comes while it runs: so many rounds from a first guess."""
_NEARLY_FULL = 0.97
"""Share of its time that a machine or link may be busy with prompts."""
_FAST_LINK_S = 2e-3
"""A link that takes no longer than this for a prompt holds nobody up."""


@dataclass(slots=True)
class Hop:
    """A link.

    Attributes
    ----------
    target
        Number of the machine it leads to.
    share
        Of all requests, those that take it.
    out_share
        The same of the requests at its source.
    latency_s
        Propagation time.
    prompt_s, decode_s
        Time that it transmits a mean prompt, or one token.
    """

    target: int
    share: float
    out_share: float
    latency_s: float
    prompt_s: float
    decode_s: float


@dataclass(slots=True)
class PassedNode:
    """A node.

    Attributes
    ----------
    node
        Its number.
    share
        Of all requests, those that see it.
    prompt_s
        Time that it computes on a mean prompt.
    num_layers, layer_decode_s
        How many layers it holds, and the time of one for a batch of so many decodes.
    hops
        The links that leave it.
    """

    node: int
    share: float
    prompt_s: float
    num_layers: int
    layer_decode_s: list[float]
    hops: list[Hop]


class Convoys:
    """How long a prompt and a decode take through one placement, at a rate of requests.

    Parameters
    ----------
    nodes
        The nodes that requests see, in order of their layers.
    home_hops
        The links from the coordinator.
    output_tokens
        Decodes of a request.
    num_machines
        Machines are numbered below this, the coordinator included.
    """

    def __init__(
        self,
        nodes: Sequence[PassedNode],
        home_hops: list[Hop],
        output_tokens: float,
        num_machines: int,
    ) -> None:
        self._nodes = nodes
        self._home_hops = home_hops
        self._output_tokens = output_tokens
        self._num_machines = num_machines

    def most_requests_per_s(self) -> float:
        """Requests per second at which some node or link has time for nothing but prompts."""
        most = min(_NEARLY_FULL / (node.share * node.prompt_s) for node in self._nodes)
        for hops in (self._home_hops, *(node.hops for node in self._nodes)):
            for hop in hops:
                if hop.share > 0 and hop.prompt_s > 0:
                    busy_s = hop.prompt_s + self._output_tokens * hop.decode_s
                    most = min(most, _NEARLY_FULL / (hop.share * busy_s))
        return most

    def latencies(self, rate: float) -> tuple[float, float] | None:
        """Mean prompt and decode latency at that many requests per second.

        None if a node cannot keep up.
        """
        behind = [0.0] * self._num_machines  # share x chance to arrive there behind a prompt
        prompt_sum, decode_sum = self._pass_links(self._home_hops, 0.0, rate, behind)
        for node in self._nodes:
            found = self._pass_node(node, rate, behind[node.node] / node.share)
            if found is None:
                return None
            prompt_s, decode_s, chance = found
            prompt_sum += node.share * prompt_s
            decode_sum += node.share * decode_s
            prompt_s, decode_s = self._pass_links(node.hops, chance, rate, behind)
            prompt_sum += prompt_s
            decode_sum += decode_s
        return prompt_sum, decode_sum

    def _pass_node(
        self, node: PassedNode, rate: float, held: float
    ) -> tuple[float, float, float] | None:
        """Time of a prompt and of a decode at a node; chance that the decode leaves behind one.

        `held` is the chance that it has come behind one.
        """
        prompts = rate * node.share
        decodes = prompts * self._output_tokens
        busy = prompts * node.prompt_s
        free = 1 - busy
        batch, decode_s = self._batch(node, decodes / free)
        if batch == inf:
            return None
        waiting_s = decode_s / 2 * min(1.0, decodes / batch * decode_s)
        # The mean rest of a prompt that others find (M/D/1), and the chance to find one.
        rest_s = node.prompt_s / 2 / free
        caught = (1 - held) * (1 - exp(-busy))
        return (
            node.prompt_s + decode_s / 2 + busy * rest_s + waiting_s,
            decode_s + waiting_s + held * max(0.0, node.prompt_s - decode_s) + caught * rest_s,
            min(1.0, held + caught),
        )

    def _batch(self, node: PassedNode, decodes_per_s: float) -> tuple[float, float]:
        """Decodes that come together while a batch runs, and the time of such a batch."""
        table = node.layer_decode_s
        most = len(table) - 1
        batch, decode_s = 1.0, node.num_layers * table[min(_FIRST_BATCH, most)]
        for _ in range(_BATCH_ROUNDS):
            batch = max(1.0, decodes_per_s * decode_s)
            if batch >= most:
                return inf, inf
            decode_s = node.num_layers * table[int(batch)]
        return batch, decode_s

    def _pass_links(
        self, hops: list[Hop], chance: float, rate: float, behind: list[float]
    ) -> tuple[float, float]:
        """Time of a prompt and of a decode on the links that leave a machine, shares considered.

        `chance` is that of a decode to leave right behind a prompt; `behind` is added to.
        """
        prompt_sum = decode_sum = 0.0
        for hop in hops:
            prompt_s, share = hop.prompt_s, hop.share
            same_way = chance * hop.out_share
            if prompt_s <= _FAST_LINK_S:
                prompt_sum += share * (hop.latency_s + prompt_s)
                decode_sum += share * (hop.latency_s + hop.decode_s)
                behind[hop.target] += share * same_way
                continue
            prompts = rate * share
            rest_s = prompt_s / 2 / (1 - prompts * (prompt_s + self._output_tokens * hop.decode_s))
            caught = (1 - same_way) * (1 - exp(-prompts * prompt_s))
            prompt_sum += share * (hop.latency_s + prompt_s + prompts * prompt_s * rest_s)
            held_s = same_way * prompt_s + caught * rest_s
            decode_sum += share * (hop.latency_s + hop.decode_s + held_s)
            behind[hop.target] += share * (same_way + caught)
        return prompt_sum, decode_sum
