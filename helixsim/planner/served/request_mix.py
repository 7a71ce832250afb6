"""The requests of a workload as means: what bounds on served tokens need of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from random import Random

from helixsim.control.control_plane import performance_model
from helixsim.scenario.offered_load import class_weights
from helixsim.scenario.resolved import Scenario
from helixsim.scenario.workload_values import Workload
from helixsim.traces.values import Lengths

_SAMPLE = 20_000


@dataclass(frozen=True, slots=True)
class RequestMix:
    """Means over the requests of a workload.

    Attributes
    ----------
    prompt_tokens, decodes
        Tokens of a prompt that are computed, and decodes of a request.
    longest_prompt
        Tokens of the longest prompt.
    context
        Tokens in the KV cache before a decode, mean over decodes.
    booked
        Tokens that a request counts with from admission to its end where admission expects an
        answer, mean over decodes.
    booked_prefill
        The same, mean over prompt tokens.
    """

    prompt_tokens: float
    decodes: float
    longest_prompt: int
    context: float
    booked: float
    booked_prefill: float

    @property
    def tokens(self) -> float:
        """Tokens of a request that go through each layer."""
        return self.prompt_tokens + self.decodes


def mix_of_lengths(
    pairs: Iterable[tuple[int, int]],
    *,
    further_decodes: int,
    expected_output: float,
    prompts_are_cached: bool = False,
) -> RequestMix:
    """The mix of requests of given lengths, each as frequent as it is listed.

    Parameters
    ----------
    pairs
        (prompt tokens, output tokens).
    further_decodes
        Decodes beyond one less than the output tokens.
    expected_output
        Tokens that admission expects an answer to have.
    prompts_are_cached
        Whether prompts may be found in a prefix cache: then they may cost nothing and share room.
    """
    num = prompts = decodes = longest = 0
    context = booked = booked_prefill = 0.0
    for prompt, output in pairs:
        own = 0 if prompts_are_cached else prompt
        count = output - 1 + further_decodes
        num += 1
        prompts += own
        decodes += count
        longest = max(longest, prompt)
        context += count * (own + (count - 1) / 2)
        booked += count * int(prompt + expected_output)
        booked_prefill += own * int(prompt + expected_output)
    return RequestMix(
        prompt_tokens=prompts / num,
        decodes=decodes / num,
        longest_prompt=longest,
        context=context / decodes if decodes else 0.0,
        booked=booked / decodes if decodes else 0.0,
        booked_prefill=booked_prefill / prompts if prompts else 0.0,
    )


def request_mix(scenario: Scenario) -> RequestMix:
    """The mix of a scenario's workload.

    Of conversations, the first turns count, which have the shortest prompts.
    """
    workload, scheduler = scenario.workload, scenario.scheduler
    return mix_of_lengths(
        _pairs(workload, scenario.run.duration_s),
        further_decodes=performance_model(scenario).passes_beyond_answer,
        expected_output=workload.mean_output_tokens * scheduler.kv.expected_output_ratio,
        prompts_are_cached=_may_share(workload),
    )


def _pairs(workload: Workload, duration_s: float) -> Iterable[tuple[int, int]]:
    if workload.trace is not None:
        turns = [turn for request in workload.trace.requests for turn in request.turns]
        return [(each.prompt_tokens, each.output_tokens) for each in turns]
    groups = workload.groups
    if not groups:
        return [(workload.mean_prompt_tokens, workload.mean_output_tokens)]
    if len(groups) == 1 and isinstance(groups[0].lengths, Lengths):
        return groups[0].lengths.pairs
    rng = Random(0)
    return [
        users.lengths.sample(rng)
        for users, share in zip(groups, class_weights(workload, duration_s), strict=True)
        for _ in range(round(share * _SAMPLE))
    ]


def _may_share(workload: Workload) -> bool:
    """Whether prompts may begin with what others have begun with."""
    trace = workload.trace
    return (
        workload.shared_prefix is not None
        or workload.conversations is not None
        or (trace is not None and any(each.prefix is not None for each in trace.requests))
    )
