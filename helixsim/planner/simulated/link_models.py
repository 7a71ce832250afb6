"""Links as the queueing model has them: how long prompts and decodes take on each."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

from helixsim.physics.performance_model import SendingCosts
from helixsim.planner.simulated.blocking import LinkModel, NodeModel
from helixsim.planner.simulated.spread import ClassLinks, Group
from helixsim.profiles.machine import LLM


class LinkModels:
    """Makes models of links.

    Parameters
    ----------
    between
        Links between classes of alike nodes.
    llm, sending
        Sizes of tokens, and what messages cost their sender.
    prompt_tokens
        Tokens of the mean prompt.

    Attributes
    ----------
    between
        As given.
    """

    def __init__(
        self, between: ClassLinks, llm: LLM, sending: SendingCosts, prompt_tokens: float
    ) -> None:
        self.between = between
        self._llm = llm
        self._sending = sending
        self._prompt_tokens = prompt_tokens

    def connect(
        self,
        groups: Sequence[Group],
        links: list[list[LinkModel]],
        source: int,
        targets: Sequence[int],
        amounts: Sequence[float],
    ) -> bool:
        """Add the links from a group to others; whether there are any.

        Amounts are shares of all requests; what would take a link that is missing takes the others.
        """
        here = groups[source]
        per_byte = self.between.s_per_byte[here.kind]
        latency_s = self.between.latency_s[here.kind]
        joined = [
            (target, amount)
            for target, amount in zip(targets, amounts, strict=True)
            if amount > 0 and per_byte[groups[target].kind] < inf
        ]
        whole = sum(amount for _, amount in joined)
        if whole <= 0:
            return False
        host = len(self.between.site_of)
        for target, amount in joined:
            there = groups[target]
            out_share = amount / whole / there.count
            link = self.link(
                target,
                here.share * out_share,
                out_share,
                latency_s[there.kind],
                per_byte[there.kind],
                to_host=host in (here.kind, there.kind),
            )
            link.count, link.sources = here.count * there.count, here.count
            links[source].append(link)
        return True

    def link(
        self,
        target: int,
        share: float,
        out_share: float,
        latency_s: float,
        s_per_byte: float,
        *,
        to_host: bool,
    ) -> LinkModel:
        """The model of a link.

        Parameters
        ----------
        target, share, out_share
            As of :class:`.LinkModel`.
        latency_s, s_per_byte
            Propagation time, and time per byte.
        to_host
            Whether it is a link with a front end, which carries token ids alone.
        """
        llm, sending = self._llm, self._sending
        num_bytes: float = llm.token_bytes
        if not to_host:
            num_bytes += llm.activation_bytes_per_token
        # Bytes flow on while the rest is still handed over: the slower of the two sets the pace.
        token_s = num_bytes * max(s_per_byte, 1 / sending.bytes_per_s)
        latency_s += sending.message_s + sending.delivery_jitter_s
        return LinkModel(
            target,
            share,
            out_share,
            latency_s,
            latency_s,
            token_s * self._prompt_tokens,
            token_s,
        )

    def let_decodes_loop(
        self,
        nodes: Sequence[NodeModel],
        groups: Sequence[Group],
        first_links: Sequence[LinkModel],
        num_layers: int,
    ) -> None:
        """Let decodes go from the last node of a route to its first one, past all front ends.

        Parameters
        ----------
        nodes, groups
            The nodes that requests pass; their models change.
        first_links
            The links from front ends; they change, too.
        num_layers
            Layers of the LLM.
        """
        for link in first_links:
            link.decode_latency_s = link.decode_s = 0.0
        first = [group for group in groups if group.start == 0]
        for node, group in zip(nodes, groups, strict=True):
            if group.end < num_layers:
                continue
            node.holds_all = group.start == 0
            back_s = 0.0
            if not node.holds_all:
                latency_s = self.between.latency_s[group.kind]
                back_s = min(latency_s[each.kind] for each in first if each.end < num_layers)
            for link in node.links:
                link.decode_latency_s, link.decode_s = back_s, 0.0
