"""Log probabilities in the formats of OpenAI's and vLLM's API."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from helixreal.engines.engine import TokenScore
from helixreal.serving.tokenizer import Tokenizer

_LEAST = -9999.0
"""Stands for log probabilities that JSON cannot express, as in vLLM."""


class LogprobsWriter:
    """Writes log probabilities.

    Parameters
    ----------
    tokenizer
        Its words stand for tokens; None for their ids.
    """

    def __init__(self, tokenizer: Tokenizer | None) -> None:
        self._tokenizer = tokenizer

    def word(self, token: int) -> str:
        """The text of one token alone."""
        if self._tokenizer is None:
            return str(token)
        return self._tokenizer.decode([token], skip_special=False)

    def of_completion(
        self, scores: Sequence[TokenScore], offset: int, *, first: int | None = None
    ) -> dict[str, Any]:
        """The log probabilities of tokens of a completion.

        Parameters
        ----------
        offset
            Number of characters before them.
        first
            A token before them that has no log probability: the first of a prompt.
        """
        words = [self.word(score.token) for score in scores]
        values: list[float | None] = [_finite(score.logprob) for score in scores]
        tops: list[dict[str, float] | None] = [self._by_word(score) for score in scores]
        if first is not None:
            words, values, tops = [self.word(first), *words], [None, *values], [None, *tops]
        offsets = []
        for word in words:
            offsets.append(offset)
            offset += len(word)
        return {
            "text_offset": offsets,
            "token_logprobs": values,
            "tokens": words,
            "top_logprobs": tops,
        }

    def _by_word(self, score: TokenScore) -> dict[str, float]:
        """A token and its alternatives; of tokens that are written alike, the most probable."""
        found: dict[str, float] = {}
        for token, logprob in ((score.token, score.logprob), *score.top):
            word = self.word(token)
            found[word] = max(_finite(logprob), found.get(word, _LEAST))
        return found

    def of_chat(self, scores: Sequence[TokenScore]) -> dict[str, Any]:
        """The log probabilities of tokens of a chat completion."""
        content = [
            self._alternative(score.token, score.logprob)
            | {"top_logprobs": [self._alternative(*each) for each in score.top]}
            for score in scores
        ]
        return {"content": content, "refusal": None}

    def _alternative(self, token: int, logprob: float) -> dict[str, Any]:
        word = self.word(token)
        return {"token": word, "logprob": _finite(logprob), "bytes": list(word.encode())}

    def of_prompt(self, scores: Sequence[TokenScore]) -> list[dict[str, Any] | None]:
        """VLLM's ``prompt_logprobs``: null for the first token, then one mapping for each."""
        return [None, *(self._ranked(score) for score in scores)]

    def _ranked(self, score: TokenScore) -> dict[str, Any]:
        found = [(token, logprob, rank) for rank, (token, logprob) in enumerate(score.top, 1)]
        if all(token != score.token for token, *_ in found):
            found.append((score.token, score.logprob, score.rank))
        return {
            str(token): {
                "logprob": _finite(logprob),
                "rank": rank,
                "decoded_token": self.word(token),
            }
            for token, logprob, rank in found
        }


def _finite(logprob: float) -> float:
    return max(logprob, _LEAST)
