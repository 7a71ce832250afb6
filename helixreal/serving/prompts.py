"""From request bodies to what the cluster is asked: token ids, limits, sampling parameters."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from helixreal.engines.engine import Sampling
from helixreal.serving.errors import ApiError
from helixreal.serving.frontend import Frontend, GenerationRequest
from helixreal.serving.requests import (
    AnswerFields,
    ChatRequest,
    CompletionRequest,
    Conversation,
    Prompt,
    messages_of,
)
from helixreal.serving.tokenizer import Tokenizer
from helixsim.errors import InputError

_DEFAULT_TOKENS = 16
_LONG_TEXT = 20_000
"""Texts of more characters are tokenized in another thread."""
_SEEDS = 2**64
_MAX_SCORES = 300_000
"""Log probabilities of one prompt; they travel in one message."""

_Made = TypeVar("_Made")


class PromptReader:
    """Makes token ids of prompts, and requests to the cluster.

    Parameters
    ----------
    frontend
        The cluster.
    tokenizer
        The tokenizer of its model; None if prompts are token ids.
    max_context_tokens
        Limit of the tokens of a prompt and its answer together.
    """

    def __init__(
        self, frontend: Frontend, tokenizer: Tokenizer | None, max_context_tokens: int
    ) -> None:
        self._vocabulary = frontend.vocabulary
        self._tokenizer = tokenizer
        self.max_context_tokens = max_context_tokens

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer.

        Raises
        ------
        ApiError
            If there is none.
        """
        if self._tokenizer is None:
            raise ApiError(
                400,
                "the server has no tokenizer (--tokenizer): prompts must be token ids",
                param="prompt",
            )
        return self._tokenizer

    @property
    def tokenizer_or_none(self) -> Tokenizer | None:
        """The tokenizer, if there is one."""
        return self._tokenizer

    def shown(self, prompt: list[int], *, skip_special: bool) -> str:
        """The text of a prompt, as ``echo`` shows it."""
        if self._tokenizer is None:
            return " ".join(map(str, prompt)) + " "
        return self._tokenizer.decode(prompt, skip_special=skip_special)

    async def of_completion(self, body: CompletionRequest) -> list[list[int]]:
        """Token ids of the prompts of a completion."""
        return [await self._read(each, body) for each in body.prompt]

    async def _read(self, prompt: Prompt, body: CompletionRequest) -> list[int]:
        if isinstance(prompt, str):
            prompt = await self.encode(prompt, plain=not body.add_special_tokens)
        return self._cut(prompt, body, "prompt")

    async def of_chat(self, body: ChatRequest) -> list[int]:
        """Token ids of a conversation, with the prompt for the next answer."""
        return self._cut(await self.conversation(body), body, "messages")

    async def conversation(self, body: Conversation) -> list[int]:
        """Token ids of a conversation."""
        if self._tokenizer is None:
            raise ApiError(
                400,
                "the server has no tokenizer (--tokenizer); use /v1/completions with token ids",
                param="messages",
            )
        try:
            text = self._tokenizer.conversation(
                messages_of(body),
                add_generation_prompt=body.add_generation_prompt,
                more=body.chat_template_kwargs,
            )
        except InputError as error:
            raise ApiError(400, str(error), param="messages") from error
        return await self.encode(text, plain=not body.add_special_tokens, param="messages")

    async def encode(self, text: str, *, plain: bool, param: str = "prompt") -> list[int]:
        """Token ids of a text.

        Raises
        ------
        ApiError
            If there is no tokenizer, or the text is certainly longer than the limit.
        """
        tokenizer = self.tokenizer
        at_least = -(-len(text) // tokenizer.longest_token)
        if at_least > self.max_context_tokens:
            raise ApiError(
                400,
                f"{param}: the text of {len(text)} characters has at least {at_least} tokens; the "
                f"limit of a prompt and its answer together is {self.max_context_tokens}",
                param=param,
            )
        return await _aside(len(text), lambda: tokenizer.encode(text, plain=plain))

    def _cut(self, prompt: list[int], body: AnswerFields, param: str) -> list[int]:
        """Apply `truncate_prompt_tokens`, and check the tokens."""
        most = body.truncate_prompt_tokens
        if most is not None:
            prompt = prompt[-(self.max_context_tokens if most < 0 else most) :] if most else []
        if not prompt:
            raise ApiError(400, f"{param}: a prompt needs at least one token", param=param)
        self.check_tokens(prompt, param)
        return prompt

    def check_tokens(self, tokens: list[int], param: str) -> None:
        """Check that the model knows token ids.

        Raises
        ------
        ApiError
            If it does not.
        """
        if self._vocabulary is not None and tokens and max(tokens) >= self._vocabulary:
            raise ApiError(
                400,
                f"{param}: there is no token {max(tokens)}; the model has {self._vocabulary}",
                param=param,
            )

    def requests(
        self, body: AnswerFields, prompt: list[int], param: str, grammar: str = ""
    ) -> list[GenerationRequest]:
        """What to ask the cluster for one prompt: one request for each choice.

        Answers follow the grammar, if there is one.

        Raises
        ------
        ApiError
            If the prompt or the answer is too long.
        """
        most = self._max_tokens(body, prompt, param)
        if body.min_tokens > most:
            raise ApiError(
                400, f"min_tokens: should be at most max_tokens ({most})", param="min_tokens"
            )
        self.check_tokens(list(body.logit_bias), "logit_bias")
        self._check_size_of_scores(body, prompt)
        if grammar:
            self._check_grammar(body)
        ends = frozenset(body.stop_token_ids)
        if self._tokenizer is not None and not body.ignore_eos:
            ends |= self._tokenizer.end_tokens
        return [
            GenerationRequest(
                prompt=prompt,
                max_tokens=max(most, 1),
                stop_tokens=ends,
                sampling=_sampling(body, choice, ends, grammar),
            )
            for choice in range(body.n)
        ]

    def _check_grammar(self, body: AnswerFields) -> None:
        """Check that answers can follow a grammar, and end with it."""
        param = "response_format" if body.response_format is not None else "structured_outputs"
        if self._vocabulary is None:
            raise ApiError(400, f"{param}: emulated engines follow no grammar", param=param)
        if self._tokenizer is None or not self._tokenizer.end_tokens:
            raise ApiError(
                400, f"{param}: needs a tokenizer (--tokenizer) with an end token", param=param
            )
        for field in ("ignore_eos", "min_tokens"):
            if getattr(body, field):
                raise ApiError(400, f"{field}: does not go with structured output", param=field)

    def _check_size_of_scores(self, body: AnswerFields, prompt: list[int]) -> None:
        number = body.num_prompt_logprobs
        if number is not None and len(prompt) * (number + 1) > _MAX_SCORES:
            raise ApiError(
                400,
                f"prompt_logprobs: {len(prompt)} tokens with {number} alternatives each are more "
                f"than {_MAX_SCORES} log probabilities",
                param="prompt_logprobs",
            )

    def _max_tokens(self, body: AnswerFields, prompt: list[int], param: str) -> int:
        limit = self.max_context_tokens
        room = limit - len(prompt)
        if room < 1:
            raise ApiError(
                400,
                f"{param}: the prompt has {len(prompt)} tokens; the limit of the prompt and its "
                f"answer together is {limit}",
                param=param,
            )
        field, asked = "max_tokens", body.max_tokens
        if isinstance(body, ChatRequest) and body.max_completion_tokens is not None:
            field, asked = "max_completion_tokens", body.max_completion_tokens
        if asked is None:
            return room if isinstance(body, ChatRequest) else min(_DEFAULT_TOKENS, room)
        if asked > room:
            raise ApiError(
                400,
                f"{field}: the prompt has {len(prompt)} tokens and the answer may have {asked}; "
                f"the limit of both together is {limit}",
                param=field,
            )
        if asked < 1 and not (isinstance(body, CompletionRequest) and body.echo):
            raise ApiError(400, f"{field}: should be at least 1, or 0 with echo", param=field)
        return asked


def _sampling(body: AnswerFields, choice: int, ends: frozenset[int], grammar: str) -> Sampling:
    """The sampling parameters of a choice; each has a seed of its own, as in vLLM."""
    seed = body.seed
    if seed is not None and choice:
        seed = (seed + choice + _SEEDS // 2) % _SEEDS - _SEEDS // 2
    return Sampling(
        temperature=body.temperature,
        top_p=body.top_p,
        seed=seed,
        top_k=max(body.top_k, 0),
        min_p=body.min_p,
        presence_penalty=body.presence_penalty,
        frequency_penalty=body.frequency_penalty,
        repetition_penalty=body.repetition_penalty,
        logit_bias=tuple(body.logit_bias.items()),
        min_tokens=body.min_tokens,
        stop_tokens=tuple(sorted(ends)) if body.min_tokens or grammar else (),
        logprobs=body.num_logprobs,
        prompt_logprobs=body.num_prompt_logprobs,
        grammar=grammar,
    )


async def _aside(num_characters: int, work: Callable[[], _Made]) -> _Made:
    """Do work on a text, in another thread if it is long."""
    if num_characters <= _LONG_TEXT:
        return work()
    return await asyncio.to_thread(work)
