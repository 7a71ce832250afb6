"""The calibrated physics of computing: how long the passes of an engine's step take.

Time of one layer, with ``prefill`` and ``decode`` the machine's measured profile:

- a pass of prefills: ``max(scale x prefill(tokens), decode(2)) + host + prompts x per prompt``.
  Even a short prompt has the layer's weights read, as two decodes have.
- a pass of n decodes: ``decode(max(n, 2)) + host + (n - 1) x per request + context``, and
  ``several decodes`` if n > 1. What the profile says of a single decode is an interpolation
  towards zero; the weights are read for one as for two.
- a pass of both: the linear parts of the layer run once over all tokens, attention of the decodes
  comes on top: ``max(scale x prefill(tokens + n), decode(2)) + decode(n) - decode(2) + ...``.

``context`` is the time to read the tokens of context beyond those of the profile from the KV
cache; where there are fewer, decodes are faster, but never faster than two are.
"""

from __future__ import annotations

from helixsim.physics.engine import EngineCosts
from helixsim.placement.topology import PlacedNode
from helixsim.profiles.machine import LLM


class PassTimes:
    """Times the passes of one node.

    Parameters
    ----------
    llm, node
        What runs where.
    engine
        What the engine costs.
    """

    def __init__(self, llm: LLM, node: PlacedNode, engine: EngineCosts) -> None:
        gpu = engine.for_machine(node.machine_type)
        self._prefill, self._decode = node.profile.prefill, node.profile.decode
        self._least_s = self._decode(2)
        self._scale = gpu.prefill_scale
        self._host_s = gpu.layer_pass_s
        self._several_s = gpu.several_decodes_s
        self._further_s = engine.further_request_s
        self._prompt_s = engine.prompt_s
        self._context_s = llm.kv_bytes_per_token_layer / gpu.kv_read_bytes_per_s
        self._profile_context = engine.profile_context_tokens
        self._copy_s_per_token = llm.activation_bytes_per_token / engine.copy_bytes_per_s
        self._prefill_s: dict[int, float] = {}
        self._decode_s: list[float] = [0.0]
        self.poll_layer_s = engine.poll_layer_s

    def copy_s(self, num_tokens: int) -> float:
        """How long the hidden states of some tokens take into the GPU, or out of it."""
        return num_tokens * self._copy_s_per_token

    def prefill_layer_s(self, num_prompts: int, num_tokens: int) -> float:
        """How long a pass of prompts takes for one layer."""
        return self._linear_s(num_tokens) + self._host_s + num_prompts * self._prompt_s

    def decode_layer_s(self, num_decodes: int, context_tokens: int) -> float:
        """How long a pass of decodes takes for one layer; contexts are given as their sum."""
        known = self._decode_s
        while len(known) <= num_decodes:
            known.append(self._decodes_s(len(known)))
        seconds = known[num_decodes]
        if self._context_s:
            seconds += self._beyond_profile_s(num_decodes, context_tokens)
        return max(seconds, self._least_s)

    def mixed_layer_s(
        self, num_prompts: int, prompt_tokens: int, num_decodes: int, context_tokens: int
    ) -> float:
        """How long one pass of both takes for one layer."""
        if not num_prompts:
            return self.decode_layer_s(num_decodes, context_tokens)
        prompts_s = self.prefill_layer_s(num_prompts, prompt_tokens + num_decodes)
        if not num_decodes:
            return prompts_s
        attention_s = (
            self._decode(num_decodes)
            - self._least_s
            + self._beyond_profile_s(num_decodes, context_tokens)
        )
        return prompts_s + max(attention_s, 0.0) + num_decodes * self._further_s

    def _linear_s(self, num_tokens: int) -> float:
        known = self._prefill_s.get(num_tokens)
        if known is None:
            known = max(self._scale * self._prefill(num_tokens), self._least_s)
            self._prefill_s[num_tokens] = known
        return known

    def _decodes_s(self, num_decodes: int) -> float:
        several = num_decodes > 1
        return (
            self._decode(max(num_decodes, 2))
            + self._host_s
            + (self._several_s if several else 0.0)
            + (num_decodes - 1) * self._further_s
        )

    def _beyond_profile_s(self, num_decodes: int, context_tokens: int) -> float:
        return self._context_s * (context_tokens - num_decodes * self._profile_context)
