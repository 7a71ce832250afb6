"""What one node serves at most: its time, its batches and the room of its KV cache.

For requests in the workload's proportion a node spends, on each of its layers, at least the costs
of :mod:`.pass_costs`. The part of a pass that does not depend on its size is shared by the
requests of the pass, of which there are no more than batch limits and the KV cache allow. And by
Little's law, the tokens that a node holds are the rate of requests times the tokens of each, times
how long each stays: at least one shortest round through all layers for each decode.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf

from helixsim.control.control_plane import node_scheduler_name
from helixsim.errors import InputError
from helixsim.planner.served.occupancy import Tangent, tangents
from helixsim.planner.served.pass_costs import (
    PassCosts,
    PassLimits,
    calibrated_costs,
    paper_costs,
)
from helixsim.planner.served.request_mix import RequestMix
from helixsim.profiles.machine import Capacity, MachineProfile
from helixsim.scenario.resolved import Scenario

_SLACK_TOKENS = 64
"""Admission looks at what requests hold from time to time; they hold a little more meanwhile."""


class UnboundedError(InputError):
    """What passes cost at least is not known for this performance model or node scheduler."""


@dataclass(frozen=True, slots=True)
class Room:
    """What a node's KV cache admits, on the layers of one request.

    Attributes
    ----------
    token_layers
        Tokens x layers that requests count with together.
    per_decode
        Tokens that a request counts with, mean over decodes.
    per_prompt_token
        The same while it is in its prefill, mean over prompt tokens; 0 where it does not count.
    """

    token_layers: float
    per_decode: float
    per_prompt_token: float


@dataclass(frozen=True)
class NodeCosts:
    """Costs of the requests of a scenario on its machines.

    Attributes
    ----------
    scenario, mix
        What is served, and its requests as means.
    """

    scenario: Scenario
    mix: RequestMix
    _known: dict[tuple[str, PassLimits], PassCosts] = field(default_factory=dict, repr=False)

    @property
    def scheduler(self) -> str:
        """The node scheduler."""
        return node_scheduler_name(self.scenario)

    @property
    def decodes_loop(self) -> bool:
        """Whether decodes go on at the nodes by themselves."""
        return self.scheduler == "vllm"

    def check(self) -> None:
        """Check that steps of this scenario can be bounded.

        Raises
        ------
        UnboundedError
            If its performance model or node scheduler is not one that ships with helixsim.
        """
        for value, known, where in (
            (self.scenario.physics, ("paper", "calibrated"), "physics"),
            (self.scheduler, ("paper", "prototype", "vllm"), "scheduler.node"),
        ):
            if value not in known:
                raise UnboundedError(
                    f"no bound on served tokens is known for '{value}', only for "
                    f"{' and '.join(known)}",
                    where=where,
                )

    def costs(self, profile: MachineProfile, capacity: Capacity) -> PassCosts:
        """What passes cost a machine at least, within the limits of its batches."""
        limits = self._limits(capacity)
        key = (profile.machine_type, limits)
        if key not in self._known:
            scenario = self.scenario
            if scenario.physics == "paper":
                found = paper_costs(scenario.llm, profile, limits)
            else:
                is_mixed = (
                    self.decodes_loop
                    or (self.scheduler == "prototype" and scenario.engine.batching == "mixed")
                    or self.scheduler == "paper"
                )
                found = calibrated_costs(scenario, profile, limits, is_mixed=is_mixed)
            self._known[key] = found
        return self._known[key]

    def _limits(self, capacity: Capacity) -> PassLimits:
        engine = self.scenario.engine
        if self.scheduler == "paper":
            return PassLimits(
                capacity.max_prompts,
                max(capacity.max_prompt_tokens, 1),
                max(capacity.max_decode_tokens, 1),
                capacity.max_decode_context,
            )
        if self.scheduler == "prototype":
            longest = max(engine.max_num_batched_tokens, self.mix.longest_prompt)
            return PassLimits(inf, longest, max(capacity.max_decode_tokens, 1), inf)
        tokens = max(engine.max_num_batched_tokens, self.mix.longest_prompt)
        return PassLimits(engine.max_num_seqs, tokens, engine.max_num_seqs, inf)

    def rooms(self, capacity: Capacity, num_layers: int) -> list[Room]:
        """The limits on what requests hold; none where nothing limits it."""
        scheduler, mix = self.scenario.scheduler, self.mix
        room = float(capacity.kv_token_layers)
        if self.scenario.engine.kv_tokens is not None:
            room = float(self.scenario.engine.kv_tokens * num_layers)
        found = []
        if self.scheduler != "paper":
            found.append(Room(room, mix.context, 0.0))
        if self.scenario.scheduler.policy not in ("maxflow", "adaptive"):
            return found
        if scheduler.kv.admission == "exact":
            found.append(Room(room + _SLACK_TOKENS * num_layers, mix.context, 0.0))
        elif not self.decodes_loop:  # where it does, nodes of all layers admit by themselves
            mark = scheduler.kv.high_water_mark
            found.append(Room(mark * room, mix.booked, mix.booked_prefill))
        return found

    def layer_s(self, profile: MachineProfile, capacity: Capacity, num_layers: int) -> float:
        """Least time of a request on one layer of a node, seconds.

        Parameters
        ----------
        num_layers
            The fewest layers of the node that a request runs.
        """
        mix, costs, limits = self.mix, self.costs(profile, capacity), self._limits(capacity)
        passes = self._passes_per_decode(capacity, limits, num_layers)
        own = max(
            line.per_pass_s * passes + line.per_item_s + line.per_context_s * mix.context
            for line in costs.decodes
        )
        prompt_passes = max(mix.prompt_tokens / limits.prompt_tokens, 1 / limits.prompts)
        if not mix.prompt_tokens:
            prompt_passes = 0.0
        best = 0.0
        for line in costs.prompts:
            decode_s = own
            if costs.riding is not None:
                ride = max(
                    each.per_item_s + each.per_context_s * mix.context for each in costs.riding
                )
                decode_s = min(own, line.per_item_s + ride)
            prompt_s = line.per_pass_s * prompt_passes + line.per_item_s * mix.prompt_tokens
            best = max(best, prompt_s + mix.decodes * decode_s)
        return best + (costs.prompt_s if mix.prompt_tokens else 0.0)

    def _passes_per_decode(self, capacity: Capacity, limits: PassLimits, num_layers: int) -> float:
        """Passes of decodes over decodes: one over the most decodes that a pass has on average."""
        shares = [1 / limits.decodes, self.mix.context / limits.decode_context]
        shares += [
            room.per_decode * num_layers / room.token_layers
            for room in self.rooms(capacity, num_layers)
            if room.token_layers > 0
        ]
        return min(max(shares), 1.0)

    def tangents(self, profile: MachineProfile, capacity: Capacity, most: float) -> list[Tangent]:
        """Decodes in execution at each rate, layers x requests per second, up to the most."""
        mix, costs = self.mix, self.costs(profile, capacity)
        shared = costs.riding is not None
        return tangents(
            costs.any_with_decodes,
            decodes=mix.decodes,
            context=mix.context,
            prefill_s=0.0 if shared else mix.prompt_tokens * self.prompt_token_s(profile, capacity),
            most=most,
        )

    def prompt_token_s(self, profile: MachineProfile, capacity: Capacity) -> float:
        """Least time of a prompt token on one layer, seconds."""
        return max(
            line.per_item_s for line in self.costs(profile, capacity).prompts if not line.per_pass_s
        )
