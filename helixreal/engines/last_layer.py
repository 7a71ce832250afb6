"""The end of a pass through the last layer: logits and tokens, shared by the engines with torch."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from helixreal.engines.engine import Payload, Row, RowFailure
from helixreal.engines.sampling import choose_tokens

_NOT_A_NUMBER = RowFailure("the model's logits are not numbers (NaN)")


def ends_of(rows: Sequence[Row]) -> list[int]:
    """The places, among all tokens of the rows, whose logits are wanted."""
    ends: list[int] = []
    end = 0
    for row in rows:
        end += row.num_tokens
        if row.wants_token:
            ends.append(end - 1)
    return ends


def tokens_of(rows: Sequence[Row], logits: torch.Tensor | None) -> list[Payload]:
    """Sample a token for each row that wants one.

    Parameters
    ----------
    rows
        The rows of the batch.
    logits
        Of shape (places, vocabulary), for the places of :func:`ends_of`; None if there are none.

    Returns
    -------
    list
        Token ids; None for rows that want none, a :class:`RowFailure` where logits are NaN.
    """
    tokens: list[Payload] = [None] * len(rows)
    wanting = [index for index, row in enumerate(rows) if row.wants_token]
    if logits is None:
        return tokens
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
