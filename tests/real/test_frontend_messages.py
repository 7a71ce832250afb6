"""What crosses the border of a front end is plain data, which msgspec can encode."""

from __future__ import annotations

import msgspec
import pytest

from helixreal.engines.engine import Sampling, Scores, TokenScore
from helixreal.serving.frontend import (
    Failed,
    Finished,
    GenerationRequest,
    Load,
    Refused,
    Token,
)

SCORES = Scores(TokenScore(5, -1.5, 2, ((6, -0.5), (5, -1.5))), [TokenScore(1, -2.0, 9)])


@pytest.mark.parametrize(
    "value",
    [
        GenerationRequest(
            prompt=[1, 2],
            max_tokens=3,
            stop_tokens=frozenset({7, 8}),
            sampling=Sampling(
                temperature=0.5,
                logit_bias=((1, 0.5),),
                stop_tokens=(7, 8),
                prompt_logprobs=2,
                grammar="{}",
            ),
        ),
        Token(5, 0.25, SCORES),
        Finished("stop"),
        Failed("lost"),
        Refused("no route", 1.0, is_unavailable=True),
        Load(1, 2, 0.5, {"n0": True}, 3, 4, 5, 6, 7, 8, 9, 10),
    ],
    ids=lambda value: type(value).__name__,
)
def test_round_trip(value):
    encoded = msgspec.msgpack.encode(value)
    assert msgspec.msgpack.decode(encoded, type=type(value)) == value
