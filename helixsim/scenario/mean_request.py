"""The mean request that throughput is estimated for: from the lengths, unless the file says it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from helixsim.errors import ScenarioError
from helixsim.scenario.offered_load import mean_request
from helixsim.scenario.workload_spec import WorkloadSpec
from helixsim.scenario.workload_values import Workload
from helixsim.traces.lengths import LengthModel
from helixsim.traces.values import Lengths

PUBLISHED = {"mean_prompt_tokens": 750, "mean_output_tokens": 240}
"""The typical request of the Helix paper, which has the lengths of the Azure conversations."""
TOLERANCE = 0.2
"""Mean lengths that differ by more than this share contradict each other."""


def with_mean_request(
    workload: Workload, spec: WorkloadSpec, file: Path, duration_s: float
) -> Workload:
    """The workload with its mean request.

    Where the scenario does not give it, it is the mean of the lengths; for `lengths` near the
    published typical request, such as the Azure conversations, it is this request. A mean that is
    given and contradicts the lengths is told in the workload's warnings; where the lengths are
    distributions, or of classes, it is an error.

    Parameters
    ----------
    workload, spec
        The workload without its mean request, and its section.
    file
        The scenario file, for messages.
    duration_s
        Length of the run, over which rates of classes are averaged.

    Raises
    ------
    ScenarioError
        If a mean that is given contradicts the distribution of the lengths.
    """
    mean = mean_request(workload, duration_s)
    found = {"mean_prompt_tokens": mean.prompt_tokens, "mean_output_tokens": mean.output_tokens}
    is_published = _has_published_lengths(workload) and not any(
        contradicts(PUBLISHED[key], value) for key, value in found.items()
    )
    is_strict = bool(workload.classes) or spec.prompt_tokens is not None
    means, warnings = {}, []
    for key, value in found.items():
        given = getattr(spec, key)
        if given is None:
            means[key] = PUBLISHED[key] if is_published else max(1, round(value))
            continue
        means[key] = given
        if contradicts(given, value):
            message = f"is {given}, but the mean of the requests is {value:.4g}"
            if is_strict:
                raise ScenarioError(
                    f"{message}; leave the key out", file=file, where=f"workload.{key}"
                )
            warnings.append(f"workload.{key} {message}: throughput is estimated for the former")
    return replace(
        workload,
        mean_prompt_tokens=means["mean_prompt_tokens"],
        mean_output_tokens=means["mean_output_tokens"],
        warnings=(*workload.warnings, *warnings),
    )


def contradicts(given: float, mean: float) -> bool:
    """Whether a mean length that is given differs too much from the lengths."""
    return abs(given - mean) > TOLERANCE * mean


def _has_published_lengths(workload: Workload) -> bool:
    """Whether lengths are a built-in set or of a file, each request by itself."""
    is_plain = isinstance(workload.lengths, Lengths | LengthModel)
    return is_plain and workload.conversations is None and not workload.classes
