"""Profiles whose times were rounded: short times are read off the line through them.

The published profiles state prefills in whole milliseconds and decodes in tenths. That is a fifth
of the time of a prefill of 375 tokens, which takes 1.9 ms a layer on an A100. The time of a small
batch is linear in its tokens, so that the line through all short times averages the rounding out.
"""

from __future__ import annotations

from helixsim.profiles.machine import LatencyProfile

_RESOLUTIONS_S = (1e-3, 1e-4)
_SHORT = 20
"""Rounding changes times of more than 20 steps by less than 2.5 %."""

_LEAST_POINTS = 3


def without_rounding(profile: LatencyProfile) -> LatencyProfile:
    """The profile with its short times on the least-squares line through them.

    Short are times of at most 20 milliseconds, or 2 if some are given in tenths. A profile with
    finer times, or with less than three short ones, is returned as it is.
    """
    resolution_s = next((each for each in _RESOLUTIONS_S if _is_rounded(profile, each)), None)
    if resolution_s is None:
        return profile
    points = [
        (tokens, seconds)
        for tokens, seconds in zip(profile.tokens, profile.seconds, strict=True)
        if tokens and seconds <= (_SHORT + 0.5) * resolution_s
    ]
    if len(points) < _LEAST_POINTS:
        return profile
    mean_tokens = sum(tokens for tokens, _ in points) / len(points)
    mean_s = sum(seconds for _, seconds in points) / len(points)
    slope = sum((tokens - mean_tokens) * (seconds - mean_s) for tokens, seconds in points) / sum(
        (tokens - mean_tokens) ** 2 for tokens, _ in points
    )
    short = {tokens for tokens, _ in points} | {0}
    return LatencyProfile(
        profile.tokens,
        tuple(
            max(mean_s + slope * (tokens - mean_tokens), 0.0) if tokens in short else seconds
            for tokens, seconds in zip(profile.tokens, profile.seconds, strict=True)
        ),
    )


def _is_rounded(profile: LatencyProfile, resolution_s: float) -> bool:
    steps = [seconds / resolution_s for seconds in profile.seconds]
    return all(abs(each - round(each)) < 1e-6 for each in steps)
