"""Sampling of tokens from logits, shared by the engines that use torch."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import torch

from helixreal.engines.engine import Payload, Row, RowFailure, Sampling, Scores, TokenScore
from helixreal.engines.grammar import GrammarError, Grammars

_NOT_A_NUMBER = RowFailure("the model's logits are not numbers (NaN)")

_SCORED_AT_ONCE = 64
"""Positions of a prompt whose logits are computed at once: each has one value for each token."""


def sample_rows(
    rows: Sequence[Row], logits_of: Callable[[list[int]], torch.Tensor], grammars: Grammars
) -> list[Payload]:
    """Sample a token after the last layer for each row that wants one, and set the rows' scores.

    Parameters
    ----------
    rows
        The rows of a batch.
    logits_of
        Returns logits, of shape (positions, vocabulary), at positions of the batch: the tokens of
        all rows one after another.
    grammars
        States of requests whose answers follow a grammar.

    Returns
    -------
    list
        Token ids; None for rows that want none, a :class:`RowFailure` for rows whose logits are NaN
        or whose grammar cannot be followed.
    """
    wanting: list[int] = []
    ends: list[int] = []
    start = 0
    for index, row in enumerate(rows):
        row.scores = _prompt_scores(row, start, logits_of)
        start += row.num_tokens
        if row.wants_token:
            wanting.append(index)
            ends.append(start - 1)
    tokens: list[Payload] = [None] * len(rows)
    if not wanting:
        return tokens
    logits = logits_of(ends)
    failures = _not_numbers(logits)
    if failures:
        logits = logits.nan_to_num()
    allowed: list[bytearray | None] = []
    for place, index in enumerate(wanting):
        try:
            allowed.append(_allowed(rows[index], grammars))
        except GrammarError as error:
            allowed.append(None)
            failures[place] = RowFailure(str(error))
    chosen = choose_tokens(
        logits,
        [rows[index].sampling for index in wanting],
        [rows[index].position + rows[index].num_tokens for index in wanting],
        [rows[index].context for index in wanting],
        allowed,
    )
    for place, (index, token) in enumerate(zip(wanting, chosen, strict=True)):
        tokens[index] = failures.get(place, token)
        row = rows[index]
        if row.sampling.logprobs is not None and place not in failures:
            row.scores = row.scores or Scores()
            (row.scores.token,) = score(logits[place][None], [token], row.sampling.logprobs)
    return tokens


def _not_numbers(logits: torch.Tensor) -> dict[int, RowFailure]:
    """The failures of rows whose logits are NaN, by place."""
    wrong: list[bool] = logits.isnan().any(dim=-1).tolist()
    return {place: _NOT_A_NUMBER for place, is_wrong in enumerate(wrong) if is_wrong}


def _allowed(row: Row, grammars: Grammars) -> bytearray | None:
    """The tokens that the row's grammar allows; None for all.

    Raises
    ------
    GrammarError
        If the grammar cannot be followed.
    """
    sampling = row.sampling
    if not sampling.grammar:
        return None
    answer = row.context[sampling.prompt_tokens : row.position + row.num_tokens]
    return grammars.allowed(row.request, sampling.grammar, answer, sampling.stop_tokens)


def _prompt_scores(
    row: Row, start: int, logits_of: Callable[[list[int]], torch.Tensor]
) -> Scores | None:
    """Scores of the tokens of the prompt that follow the row's tokens; None if none are wanted."""
    sampling = row.sampling
    if sampling.prompt_logprobs is None:
        return None
    following = row.context[row.position + 1 : sampling.prompt_tokens][: row.num_tokens]
    scores = Scores(prompt=[])
    for at in range(0, len(following), _SCORED_AT_ONCE):
        tokens = following[at : at + _SCORED_AT_ONCE]
        logits = logits_of(list(range(start + at, start + at + len(tokens))))
        scores.prompt += score(logits, tokens, sampling.prompt_logprobs)
    return scores


def score(logits: torch.Tensor, tokens: Sequence[int], num_top: int) -> list[TokenScore]:
    """Log probabilities of one token for each row of logits, and of the most probable ones."""
    logprobs = logits.float().log_softmax(dim=-1)
    ids = torch.tensor(list(tokens), device=logits.device)[:, None]
    own = logprobs.gather(-1, ids)
    ranks = (logprobs > own).sum(dim=-1) + 1
    top, top_ids = logprobs.topk(min(num_top, logprobs.shape[-1]), dim=-1)
    return [
        TokenScore(token, logprob, rank, tuple(zip(ids, values, strict=True)))
        for token, logprob, rank, ids, values in zip(
            tokens, own[:, 0].tolist(), ranks.tolist(), top_ids.tolist(), top.tolist(), strict=True
        )
    ]


def choose_tokens(
    logits: torch.Tensor,
    samplings: Sequence[Sampling],
    positions: Sequence[int],
    contexts: Sequence[Sequence[int]] | None = None,
    allowed: Sequence[bytearray | None] | None = None,
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
    contexts
        Tokens of the prompt and of the answer so far, for each row that has penalties.
    allowed
        For rows with a grammar: one byte for each token, 0 if it may not come next.

    Returns
    -------
    list of int
        Token ids. Greedy sampling breaks ties as argmax does.
    """
    logits = _masked(_adjusted(logits, samplings, positions, contexts), allowed)
    tokens: list[int] = logits.argmax(dim=-1).tolist()
    drawn = [row for row, sampling in enumerate(samplings) if not sampling.is_greedy]
    if drawn:
        picked = _draw(
            logits[drawn], [samplings[row] for row in drawn], [positions[row] for row in drawn]
        )
        for row, token in zip(drawn, picked, strict=True):
            tokens[row] = token
    return tokens


def _adjusted(
    logits: torch.Tensor,
    samplings: Sequence[Sampling],
    positions: Sequence[int],
    contexts: Sequence[Sequence[int]] | None,
) -> torch.Tensor:
    """Logits after biases, forbidden stop tokens and penalties, in vLLM's order."""
    adjusted: torch.Tensor | None = None
    for index, (sampling, position) in enumerate(zip(samplings, positions, strict=True)):
        bans = position - sampling.prompt_tokens < sampling.min_tokens
        if not (sampling.logit_bias or bans or sampling.has_penalties):
            continue
        if adjusted is None:
            adjusted = logits.float().clone()
        row = adjusted[index]
        if sampling.logit_bias:
            ids, values = zip(*sampling.logit_bias, strict=True)
            row[list(ids)] += torch.tensor(values, dtype=torch.float32, device=row.device)
        if bans and sampling.stop_tokens:
            known = [token for token in sampling.stop_tokens if token < len(row)]
            row[known] = -torch.inf
        if sampling.has_penalties:
            assert contexts is not None, "penalties depend on the tokens so far"
            _penalize(row, sampling, contexts[index][:position])
    return logits if adjusted is None else adjusted


def _masked(logits: torch.Tensor, allowed: Sequence[bytearray | None] | None) -> torch.Tensor:
    """Logits of tokens that may not come next are minus infinity."""
    if allowed is None or not any(allowed):
        return logits
    masked = logits.float().clone()
    for row, flags in zip(masked, allowed, strict=True):
        if flags:
            may_come = torch.zeros(len(row), dtype=torch.bool)
            known = torch.frombuffer(flags, dtype=torch.uint8)[: len(row)] != 0
            may_come[: len(known)] = known
            row[~may_come.to(row.device)] = -torch.inf
    return masked


def _penalize(row: torch.Tensor, sampling: Sampling, context: Sequence[int]) -> None:
    """Apply penalties to the logits of one row, in place.

    As in vLLM, the repetition penalty counts the prompt and the answer, the others the answer.
    """
    ids = torch.tensor(list(context), dtype=torch.long, device=row.device)
    if sampling.repetition_penalty != 1:
        seen = ids.unique()
        values, penalty = row[seen], sampling.repetition_penalty
        row[seen] = torch.where(values > 0, values / penalty, values * penalty)
    counts = torch.bincount(ids[sampling.prompt_tokens :], minlength=len(row))
    row -= sampling.frequency_penalty * counts + sampling.presence_penalty * (counts > 0)


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
    ordered = _most_probable(ordered, samplings, column)
    reached = ordered.cumsum(dim=-1)
    top_p = column([sampling.top_p for sampling in samplings])
    # Rounding may leave the total below 1, but top_p 1 must keep every token.
    kept = ((reached - ordered < top_p) | (top_p >= 1)) & (ordered > 0)
    last = kept.sum(dim=-1, keepdim=True).clamp(min=1) - 1
    uniform = column([_uniform(*pair) for pair in zip(samplings, positions, strict=True)])
    index = torch.searchsorted(reached, uniform * reached.gather(-1, last), right=True)
    tokens: list[int] = ids.gather(-1, torch.minimum(index, last))[:, 0].tolist()
    return tokens


def _most_probable(
    ordered: torch.Tensor,
    samplings: Sequence[Sampling],
    column: Callable[[Sequence[float]], torch.Tensor],
) -> torch.Tensor:
    """Probabilities, in falling order, after `min_p` and `top_k`; the rest is 0."""
    if not any(sampling.top_k or sampling.min_p for sampling in samplings):
        return ordered
    most = column([sampling.top_k or ordered.shape[-1] for sampling in samplings])
    floor = column([sampling.min_p for sampling in samplings]) * ordered[:, :1]
    places = torch.arange(ordered.shape[-1], device=ordered.device)[None]
    kept = ordered * ((places < most) & (ordered >= floor))
    return kept / kept.sum(dim=-1, keepdim=True)


def _uniform(sampling: Sampling, position: int) -> float:
    if sampling.seed is None:
        return random.random()
    return random.Random(f"{sampling.seed} {position}").random()
