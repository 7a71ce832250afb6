"""Which token ids a model has."""

from __future__ import annotations

from collections.abc import Sequence

_MAX_TOKEN_ID = 2**31 - 1
"""Limit of token ids in messages."""


def wrong_token(tokens: Sequence[int], vocabulary: int | None) -> str | None:
    """What is wrong with token ids, given the number of ids that exist; None if nothing is."""
    most = _MAX_TOKEN_ID if vocabulary is None else vocabulary - 1
    if not tokens or (min(tokens) >= 0 and max(tokens) <= most):
        return None
    place, token = next(
        (place, token) for place, token in enumerate(tokens) if not 0 <= token <= most
    )
    return f"token {place} has the id {token}, but the model's token ids are 0 to {most}"
