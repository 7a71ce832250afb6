"""Estimated throughput of a machine of a given type with k layers, in tokens per second.

This is the published estimate, the basis of planners and of the flow graph. The typical number
of requests at a machine follows from its KV cache and from the share of a request's time that
is spent at the machine. This share follows from the machine's performance relative to the rest
of the cluster, and the performance follows from the throughput. Ten iterations converge.

Every expression keeps the published order of operations, so that the figures are
bit-identical; machine types are summed in the order of `mix`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from helixsim.errors import PlacementError, ScenarioError
from helixsim.profiles.machine import LLM, MachineProfile

_ROUNDS = 10
_KV_SHARE_IN_USE = 0.3
"""Share of a KV cache that the typical requests of a machine fill."""
_PLENTY = 1.2
"""A cluster is crowded if its typical layers are fewer than this factor times the LLM's."""


@dataclass(frozen=True, slots=True)
class ThroughputEstimate:
    """The typical load and throughput of a machine.

    Attributes
    ----------
    requests
        Requests in its prefill phase at any time; mostly a small fraction.
    prompt_tokens, decode_tokens
        Tokens of the two phases in one batch.
    tokens_per_s
        Prompt and output tokens through all of its layers, per second.
    """

    requests: float
    prompt_tokens: int
    decode_tokens: int
    tokens_per_s: float


@dataclass(frozen=True, slots=True)
class ThroughputTable:
    """The estimates of one LLM on one mix of machines.

    Attributes
    ----------
    llm
        Name of the LLM.
    estimates
        Machine type -> number of layers -> estimate.
    estimate_with
        Estimates a machine whose KV capacity differs from its type's: function of type, number
        of layers and KV capacity in tokens x layers.
    """

    llm: str
    estimates: Mapping[str, Mapping[int, ThroughputEstimate]]
    estimate_with: Callable[[str, int, int], ThroughputEstimate] | None = field(
        default=None, repr=False, compare=False
    )

    def tokens_per_s(
        self, machine_type: str, num_layers: int, kv_token_layers: int | None = None
    ) -> float:
        """Throughput of a machine of that type when it holds `num_layers`.

        Parameters
        ----------
        kv_token_layers
            KV capacity of the machine, if it differs from its type's.

        Raises
        ------
        PlacementError
            If the type is not in the mix or cannot hold this number of layers.
        """
        if machine_type not in self.estimates:
            raise PlacementError(
                f"the throughput of '{machine_type}' was not estimated, only that of "
                f"{', '.join(self.estimates)}"
            )
        if kv_token_layers is not None and self.estimate_with is not None:
            return self.estimate_with(machine_type, num_layers, kv_token_layers).tokens_per_s
        by_layers = self.estimates[machine_type]
        if num_layers not in by_layers:
            raise PlacementError(
                f"'{machine_type}' has no capacity for {num_layers} layers of {self.llm}; "
                f"it has one for {', '.join(map(str, by_layers))}"
            )
        return by_layers[num_layers].tokens_per_s


def estimate_throughput(
    llm: LLM,
    profiles: Mapping[str, MachineProfile],
    mix: Mapping[str, int],
    *,
    mean_prompt_tokens: int = 750,
    mean_output_tokens: int = 240,
) -> ThroughputTable:
    """Estimate the throughput of every machine type of a cluster, for every layer count.

    Parameters
    ----------
    llm
        The LLM that is served.
    profiles
        Machine type -> its profile for this LLM; every type of `mix`, at least.
    mix
        Machine type -> number of machines, for example :meth:`.Cluster.machine_mix`.
    mean_prompt_tokens, mean_output_tokens
        Lengths of the mean request.

    Returns
    -------
    ThroughputTable
        For every type of the mix and every number of layers of the LLM for which its profile
        has a capacity.

    Raises
    ------
    ScenarioError
        If a type of the mix has no machine, no profile, or no room for any request.
    """
    for machine_type, count in mix.items():
        if count < 1:
            raise ScenarioError(f"the mix has {count} machines of type '{machine_type}'")
        if machine_type not in profiles:
            raise ScenarioError(f"machine type '{machine_type}' has no profile for {llm.name}")
    estimator = _Estimator(llm, profiles, mix, mean_prompt_tokens, mean_output_tokens)
    performance = estimator.settle()
    return ThroughputTable(
        llm=llm.name,
        estimates={
            machine_type: {
                num_layers: estimator.estimate(machine_type, num_layers, performance)
                for num_layers in profiles[machine_type].capacities
                if num_layers <= llm.num_layers
            }
            for machine_type in mix
        },
        estimate_with=lambda machine_type, num_layers, kv_token_layers: estimator.estimate(
            machine_type, num_layers, performance, kv_token_layers
        ),
    )


class _Estimator:
    """The formulas, with their common inputs."""

    def __init__(
        self,
        llm: LLM,
        profiles: Mapping[str, MachineProfile],
        mix: Mapping[str, int],
        mean_prompt_tokens: int,
        mean_output_tokens: int,
    ) -> None:
        self.llm = llm
        self.profiles = profiles
        self.mix = mix
        self.mean_prompt_tokens = mean_prompt_tokens
        self.mean_output_tokens = mean_output_tokens
        self.typical_layers = self._typical_layers()

    def _typical_layers(self) -> dict[str, int]:
        """Typical number of layers of each machine type in this cluster."""
        hints = {name: self.profiles[name].hints for name in self.mix}
        most = self.llm.num_layers
        typical = {name: min(hint.typical_layers, most) for name, hint in hints.items()}
        if sum(self.mix[name] * typical[name] for name in self.mix) >= _PLENTY * most:
            return typical
        return {name: min(hint.crowded_typical_layers, most) for name, hint in hints.items()}

    def settle(self) -> dict[str, float]:
        """Iterate to the performance of each machine type, in layers x tokens/s."""
        performance = {name: self.profiles[name].hints.start_performance for name in self.mix}
        for _ in range(_ROUNDS):
            performance = {
                name: self.estimate(name, layers, performance).tokens_per_s * layers
                for name, layers in self.typical_layers.items()
            }
            for name, value in performance.items():
                if value <= 0:
                    raise ScenarioError(
                        f"machine type '{name}' has no KV cache left for requests when it holds "
                        f"{self.typical_layers[name]} layers of {self.llm.name}; give it fewer "
                        "typical layers"
                    )
        return performance

    def estimate(
        self,
        machine_type: str,
        num_layers: int,
        performance: Mapping[str, float],
        kv_token_layers: int | None = None,
    ) -> ThroughputEstimate:
        """Throughput of one machine, given the performance of all types."""
        profile = self.profiles[machine_type]
        if kv_token_layers is None:
            kv_token_layers = profile.capacities[num_layers].kv_token_layers
        ratio = self._time_share(machine_type, num_layers, performance)
        kv_tokens = int(_KV_SHARE_IN_USE * kv_token_layers / num_layers)
        resident = kv_tokens / (self.mean_prompt_tokens + self.mean_output_tokens)
        requests = resident * ratio / self.mean_output_tokens
        prompt_tokens = round(self.mean_prompt_tokens * requests)
        decode_tokens = round(resident * ratio)
        if requests > 1:
            requests = 1
            prompt_tokens, decode_tokens = self.mean_prompt_tokens, self.mean_output_tokens
        return ThroughputEstimate(
            requests=requests,
            prompt_tokens=prompt_tokens,
            decode_tokens=decode_tokens,
            tokens_per_s=self._tokens_per_s(
                profile, num_layers, requests, prompt_tokens, decode_tokens
            ),
        )

    def _time_share(
        self, machine_type: str, num_layers: int, performance: Mapping[str, float]
    ) -> float:
        """Share of a request's time that it spends in `num_layers` at this machine."""
        layer_time = {name: 1 / performance[name] for name in self.mix}
        weights = {name: self.mix[name] * self.typical_layers[name] for name in self.mix}
        mean_layer_time = sum(weights[name] * layer_time[name] for name in self.mix) / sum(
            weights.values()
        )
        here = num_layers * layer_time[machine_type]
        return here / ((self.llm.num_layers - num_layers) * mean_layer_time + here)

    def _tokens_per_s(
        self,
        profile: MachineProfile,
        num_layers: int,
        requests: float,
        prompt_tokens: float,
        decode_tokens: float,
    ) -> float:
        """Tokens of the typical batch over the time that all layers take for it."""
        if requests >= 1:
            layer_time = profile.prefill(prompt_tokens) + profile.decode(decode_tokens)
            return (prompt_tokens + decode_tokens) / (num_layers * layer_time)
        if requests <= 0:
            return 0.0
        # One prefill meets `scale` decode batches. With less than one typical prompt token,
        # the published rounding would divide by zero; this case is not rounded.
        scale = 1 / requests
        prefill_tokens = int(prompt_tokens * scale)
        if prompt_tokens == 0:
            prefill_tokens = self.mean_prompt_tokens
            prompt_tokens = self.mean_prompt_tokens * requests
            decode_tokens = self.mean_output_tokens * requests
        layer_time = profile.prefill(prefill_tokens) + scale * profile.decode(decode_tokens)
        return scale * (prompt_tokens + decode_tokens) / (num_layers * layer_time)
