"""Prefix-aware scheduling: a prompt goes where its work would be done first, cached work left out.

For each node, the policy remembers the blocks of the prompts that it sent there, the least recently
used forgotten beyond the size of the node's KV cache: what the node's prefix cache may still hold.
When a prompt leaves a machine, it takes the link to the node with the least

    (work there + tokens of the prompt that the node is not believed to hold) / tokens/s of the node

where the work there, of requests that this policy sent and that have not ended, is the tokens of
their prefills until these are back, and then half the expected answer of each: a token of a prompt
counts as much as one of an answer, as in the paper's scheduler. Among equals, it is the node that
has been sent the least, in seconds of work.

Sources: NVIDIA Dynamo's KV router adds blocks to prefill and blocks in decode, and takes the least
(https://docs.nvidia.com/dynamo/design-docs/router-design); it divides by no rate, because its nodes
are alike. The cache-aware policies of the routers of SGLang and vLLM remember what they sent where
in a tree of limited size, too, and take the shortest queue where loads differ by too much
(``--balance-abs-threshold``, ``--balance-rel-threshold``); the load-aware one of the vLLM
production stack subtracts the relative load from the share of the prompt that is found.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Hashable, Iterable
from math import inf
from typing import NamedTuple

from helixsim.control.routing.hop_by_hop import HopByHopPolicy
from helixsim.control.routing.policy import PolicyInputs, RoutingPoint
from helixsim.placement.flow import Flow
from helixsim.placement.topology import PlacedLink
from helixsim.requests import Request, SharedPrefix


class _Booking(NamedTuple):
    """A request that was sent to a node, and the tokens of its prefill there."""

    node: int
    tokens: int


class PrefixAwarePolicy(HopByHopPolicy):
    """Chooses by the work of each node and by the prefixes that were sent to it."""

    routing_point = RoutingPoint.HOP

    def __init__(self, inputs: PolicyInputs) -> None:
        super().__init__(inputs)
        topology = inputs.topology
        self._rates = [max(rate, 1e-9) for rate in inputs.flow.compute_tokens_per_s]
        self._decode_tokens = inputs.expected_output_tokens / 2
        # Only nodes that hold all layers find prefixes again.
        self._sent = [
            SentPrefixes(
                node.capacity.kv_token_layers // node.num_layers
                if node.num_layers == topology.llm.num_layers
                else 0
            )
            for node in topology.nodes
        ]
        self._prefill_tokens = [0] * len(topology.nodes)
        self._num_decoding = [0] * len(topology.nodes)
        self._sent_tokens = [0] * len(topology.nodes)
        self._bookings: dict[Request, list[_Booking]] = {}
        self._prefilling: dict[Request, None] = {}

    def choose(self, machine: int, request: Request) -> PlacedLink:
        """The link to the node where the work would be done first.

        Among equals, to the one that has been sent the least.
        """
        links = self._topology.outgoing[machine]
        fitting = [link for link in links if self._room.fits(link, request)]
        if self._topology.is_front_end(fitting[0].target):
            return fitting[0]
        best, least, best_tokens = fitting[0], (inf, inf), 0
        for link in fitting:
            node = link.target
            tokens = request.num_tokens - self._found(node, request)
            work = self._prefill_tokens[node] + self._decode_tokens * self._num_decoding[node]
            rate = self._rates[node]
            seconds = (work + tokens) / rate, self._sent_tokens[node] / rate
            if seconds < least:
                best, least, best_tokens = link, seconds, tokens
        self._book(best.target, best_tokens, request)
        return best

    def decodes_dispatched(self, requests: Iterable[Request]) -> None:
        """Take note that the prefills of requests are back, where it is not known yet."""
        if not self._prefilling:
            return
        for request in requests:
            if request in self._prefilling:
                del self._prefilling[request]
                for node, tokens in self._bookings[request]:
                    self._prefill_tokens[node] -= tokens
                    self._num_decoding[node] += 1

    def finished(self, request: Request) -> None:
        """Take a request's work off the nodes that it was sent to; its prefix stays there."""
        is_prefilling = request in self._prefilling
        self._prefilling.pop(request, None)
        for node, tokens in self._bookings.pop(request, ()):
            if is_prefilling:
                self._prefill_tokens[node] -= tokens
            else:
                self._num_decoding[node] -= 1

    def reroute(
        self,
        flow: Flow,
        down: frozenset[int],
        cut: frozenset[tuple[int, int]] = frozenset(),
    ) -> None:
        """Choose none of the nodes that are down, and forget what was sent to them."""
        super().reroute(flow, down, cut)
        for node in down:
            self._sent[node].clear()

    def validate(self, active: Collection[Request]) -> None:
        """Check that work is booked for active requests only, and adds up."""
        super().validate(active)
        bookings = self._bookings
        assert bookings.keys() <= set(active), "kv-conserved: work of a request that has ended"
        prefills = [0] * len(self._prefill_tokens)
        decoding = [0] * len(self._num_decoding)
        for request, booked in bookings.items():
            for node, tokens in booked:
                if request in self._prefilling:
                    prefills[node] += tokens
                else:
                    decoding[node] += 1
        assert (prefills, decoding) == (self._prefill_tokens, self._num_decoding), (
            "kv-conserved: work does not add up"
        )

    def _found(self, node: int, request: Request) -> int:
        """Tokens of a prompt that a node is believed to hold; one at least has to be computed."""
        prefix = request.prefix
        if prefix is None:
            return 0
        return min(self._sent[node].found(prefix), request.num_tokens - 1)

    def _book(self, node: int, tokens: int, request: Request) -> None:
        self._bookings.setdefault(request, []).append(_Booking(node, tokens))
        self._prefilling[request] = None
        self._prefill_tokens[node] += tokens
        self._sent_tokens[node] += tokens
        prefix = request.prefix
        shared = 0 if prefix is None else min(prefix.shared_tokens, request.num_tokens)
        own_tokens = request.num_tokens - shared + int(2 * self._decode_tokens)
        self._sent[node].add(prefix, request.index, own_tokens)


class SentPrefixes:
    """Blocks that were sent to a node, the least recently used forgotten beyond a size.

    Because a key stands for all tokens up to the end of its block, and blocks of a prompt are
    forgotten from its end, what is remembered of a prompt is a beginning of it.

    Parameters
    ----------
    max_tokens
        The most tokens of blocks to remember.
    """

    def __init__(self, max_tokens: int) -> None:
        self._max_tokens = max_tokens
        self._tokens = 0
        self._blocks: OrderedDict[Hashable, int] = OrderedDict()

    def clear(self) -> None:
        """Forget all blocks."""
        self._blocks.clear()
        self._tokens = 0

    def found(self, prefix: SharedPrefix) -> int:
        """Tokens at the beginning of a prefix that are remembered."""
        keys, blocks = prefix.keys, self._blocks
        low, high = 0, len(keys)
        while low < high:
            middle = (low + high) // 2
            if (keys[middle], middle) in blocks:
                low = middle + 1
            else:
                high = middle
        return min(low * prefix.block_tokens, prefix.shared_tokens)

    def add(self, prefix: SharedPrefix | None, request: int, own_tokens: int) -> None:
        """Remember the blocks of a request, and that it has other tokens of its own."""
        if not self._max_tokens:
            return
        self._put((request, None, None), own_tokens)
        if prefix is not None:
            size, left = prefix.block_tokens, prefix.shared_tokens
            for number in range(len(prefix.keys) - 1, -1, -1):
                self._put((prefix.keys[number], number), min(size, left - number * size))
        blocks = self._blocks
        while self._tokens > self._max_tokens:
            _key, tokens = blocks.popitem(last=False)
            self._tokens -= tokens

    def _put(self, key: Hashable, tokens: int) -> None:
        blocks = self._blocks
        self._tokens += tokens - blocks.get(key, 0)
        blocks[key] = tokens
        blocks.move_to_end(key)
