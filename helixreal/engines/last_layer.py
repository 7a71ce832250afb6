"""The end of a pass through the last layer: logits and tokens, shared by the engines with torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from helixreal.engines.engine import Payload, Row, RowFailure
from helixreal.engines.sampling import choose_tokens

_NOT_A_NUMBER = RowFailure("the model's logits are not numbers (NaN)")


def tokens_of(rows: Sequence[Row], logits_at: Callable[[list[int]], torch.Tensor]) -> list[Payload]:
    """Sample a token for each row that wants one.

    Parameters
    ----------
    rows
        The rows of the batch.
    logits_at
        Returns the logits, of shape (places, vocabulary), at places among all tokens of the rows.

    Returns
    -------
    list
        Token ids; None for rows that want none, a :class:`RowFailure` where logits are NaN.
    """
    wanting: list[int] = []
    ends: list[int] = []
    end = 0
    for index, row in enumerate(rows):
        end += row.num_tokens
        if row.wants_token:
            wanting.append(index)
            ends.append(end - 1)
    tokens: list[Payload] = [None] * len(rows)
    if not wanting:
        return tokens
    logits = logits_at(ends)
    wrong: list[bool] = logits.isnan().any(dim=-1).tolist()
    if any(wrong):
        logits = logits.nan_to_num()
    chosen = choose_tokens(
        logits,
        [rows[index].sampling for index in wanting],
        [rows[index].position + rows[index].num_tokens for index in wanting],
    )
    for index, token, is_wrong in zip(wanting, chosen, wrong, strict=True):
        tokens[index] = _NOT_A_NUMBER if is_wrong else token
    return tokens
