"""Sampling of tokens from logits, shared by the engines that use torch."""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch

from helixreal.engines.engine import Sampling


def choose_tokens(
    logits: torch.Tensor, samplings: Sequence[Sampling], positions: Sequence[int]
) -> list[int]:
    """Choose one token for each row.

    Parameters
    ----------
    logits
        Of shape (rows, vocabulary).
    samplings
        Sampling parameters of each row.
    positions
        Position of each row's token in its request. A draw with a seed depends only on the seed
        and the position.

    Returns
    -------
    list of int
        Token ids. Greedy sampling breaks ties as argmax does.
    """
    tokens: list[int] = logits.argmax(dim=-1).tolist()
    drawn = [row for row, sampling in enumerate(samplings) if sampling.temperature > 0]
    if drawn:
        picked = _draw(
            logits[drawn], [samplings[row] for row in drawn], [positions[row] for row in drawn]
        )
        for row, token in zip(drawn, picked, strict=True):
            tokens[row] = token
    return tokens


def _draw(
    logits: torch.Tensor, samplings: Sequence[Sampling], positions: Sequence[int]
) -> list[int]:
    """Sample by inversion of the cumulative probabilities, most probable token first."""

    def column(values: Sequence[float]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float32, device=logits.device)[:, None]

    temperatures = column([sampling.temperature for sampling in samplings])
    logits = logits.float()
    # Subtracting the maximum avoids overflow at tiny temperatures.
    logits = (logits - logits.amax(dim=-1, keepdim=True)) / temperatures
    ordered, ids = logits.softmax(dim=-1).sort(dim=-1, descending=True, stable=True)
    reached = ordered.cumsum(dim=-1)
    top_p = column([sampling.top_p for sampling in samplings])
    # Rounding may leave the total below 1, but top_p 1 must keep every token.
    kept = ((reached - ordered < top_p) | (top_p >= 1)).sum(dim=-1, keepdim=True).clamp(min=1)
    uniform = column([_uniform(*pair) for pair in zip(samplings, positions, strict=True)])
    index = torch.searchsorted(reached, uniform * reached.gather(-1, kept - 1), right=True)
    tokens: list[int] = ids.gather(-1, torch.minimum(index, kept - 1))[:, 0].tolist()
    return tokens


def _uniform(sampling: Sampling, position: int) -> float:
    if sampling.seed is None:
        return random.random()
    return random.Random(f"{sampling.seed} {position}").random()
