"""What a workload asks for on average: lengths of its requests, and their rate."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import fsum
from random import Random

from helixsim.scenario.workload_values import AnyLengths, Turns, UserClass, Workload
from helixsim.traces.lengths import IndependentLengths, LengthModel
from helixsim.traces.values import Lengths

_MEAN_SAMPLE = 20_000
_DIGITS = 9
"""Means of distributions are rounded to this number of digits after the point, so that the last
bit of a machine's logarithm does not matter."""


@dataclass(frozen=True, slots=True)
class MeanRequest:
    """Tokens of a request, on average.

    Attributes
    ----------
    prompt_tokens, output_tokens
        Mean lengths.
    tokens
        Mean of their sum.
    """

    prompt_tokens: float
    output_tokens: float
    tokens: float


@lru_cache(maxsize=32)
def mean_lengths(lengths: AnyLengths) -> MeanRequest:
    """The mean of a source of lengths; of a built-in one, of 20,000 draws."""
    if isinstance(lengths, IndependentLengths):
        prompt, output = (
            round(mean, _DIGITS)
            for mean in (lengths.mean_prompt_tokens, lengths.mean_output_tokens)
        )
        return MeanRequest(prompt, output, prompt + output)
    if isinstance(lengths, LengthModel):
        return _mean(lengths.draw(_MEAN_SAMPLE, Random(0)))
    return _mean(lengths)


def _mean(lengths: Lengths) -> MeanRequest:
    tokens = sum(prompt + output for prompt, output in lengths.pairs) / len(lengths.pairs)
    return MeanRequest(lengths.mean_prompt_tokens, lengths.mean_output_tokens, tokens)


def mean_request_of(users: UserClass) -> MeanRequest:
    """The mean request of a class of users; turns of conversations grow."""
    found = mean_lengths(users.lengths)
    talks = users.conversations
    if talks is None:
        return found
    turns = _turn_of_mean_request(talks)
    # In the first turn it is one new prompt and one answer, in the second two of each, ...
    before = found.tokens * (turns - 1) / 2 + talks.system_prompt_tokens
    return MeanRequest(
        found.prompt_tokens + before,
        found.output_tokens,
        found.tokens * ((turns + 1) / 2) + talks.system_prompt_tokens,
    )


def _turn_of_mean_request(talks: Turns) -> float:
    """E[T^2] / E[T] of the number of turns T: (it + 1) / 2 is the mean number of a turn."""
    return talks.turns.mean_square / talks.turns.mean


def class_weights(workload: Workload, duration_s: float) -> list[float]:
    """Share of the requests that are of each group of users, in order; the sum is 1.

    Without any request, all groups have the same.
    """
    rates = [
        users.share or 0.0
        if users.requests_per_s is None
        else users.requests_per_s.expected(duration_s)
        for users in workload.groups
    ]
    total = fsum(rates)
    return [rate / total if total else 1 / len(rates) for rate in rates]


def mean_request(workload: Workload, duration_s: float) -> MeanRequest:
    """The mean of all requests that a workload offers in a run of this length.

    Without lengths or a trace, of the lengths that throughput is estimated for.
    """
    if workload.trace is not None:
        requests = [turn for request in workload.trace.requests for turn in request.turns]
        prompt = sum(r.prompt_tokens for r in requests) / len(requests)
        output = sum(r.output_tokens for r in requests) / len(requests)
        return MeanRequest(prompt, output, prompt + output)
    groups = workload.groups
    if not groups:
        prompt, output = workload.mean_prompt_tokens, workload.mean_output_tokens
        return MeanRequest(float(prompt), float(output), float(prompt + output))
    if len(groups) == 1:
        return mean_request_of(groups[0])
    weighted = list(
        zip(class_weights(workload, duration_s), map(mean_request_of, groups), strict=True)
    )
    return MeanRequest(
        fsum(share * each.prompt_tokens for share, each in weighted),
        fsum(share * each.output_tokens for share, each in weighted),
        fsum(share * each.tokens for share, each in weighted),
    )


def mean_context_tokens(workload: Workload, duration_s: float) -> int:
    """Mean context of a workload's requests while they decode: the prompt and half of the output.

    In whole tokens, at least 1.
    """
    mean = mean_request(workload, duration_s)
    return max(1, round(mean.prompt_tokens + mean.output_tokens / 2))


def mean_request_tokens(workload: Workload, duration_s: float) -> float:
    """Mean number of prompt plus output tokens of a workload's requests."""
    return mean_request(workload, duration_s).tokens


def offered_requests_per_s(workload: Workload, duration_s: float) -> float | None:
    """Mean rate of the requests that an online workload offers; None for a closed loop."""
    if workload.mode == "offline":
        return None
    if workload.trace is not None:
        return workload.trace.rate_per_s * workload.rate_scale
    own = [users.requests_per_s for users in workload.classes if users.requests_per_s is not None]
    rates = [workload.requests_per_s] if workload.requests_per_s is not None else own
    if rates:
        expected = fsum(rate.expected(duration_s) for rate in rates)
        return expected / duration_s * workload.rate_scale
    if workload.mean_tokens_per_s is None:
        return None
    return workload.mean_tokens_per_s / mean_request_tokens(workload, duration_s)
