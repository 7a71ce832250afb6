"""The routes that generate text: completions and chat completions."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.requests import Request
from starlette.responses import Response

from helixreal.serving.answers import Answer, TextRules
from helixreal.serving.bodies import read_body
from helixreal.serving.formats import ChatForm, CompletionForm, Usage
from helixreal.serving.frontend import Frontend
from helixreal.serving.logprobs import LogprobsWriter
from helixreal.serving.metrics import Metrics
from helixreal.serving.prompts import PromptReader
from helixreal.serving.request_ids import request_id_of
from helixreal.serving.requests import AnswerFields, ChatRequest, CompletionRequest
from helixreal.serving.responses import respond
from helixreal.serving.structured import grammar_of


class GenerationRoutes:
    """Handlers of the routes that generate text.

    Parameters
    ----------
    frontend
        The cluster.
    prompts
        Reads prompts.
    metrics
        Metrics of the endpoint.
    model_names
        Names of the model; the first is in responses.
    """

    def __init__(
        self,
        frontend: Frontend,
        prompts: PromptReader,
        metrics: Metrics,
        model_names: Sequence[str],
    ) -> None:
        self._frontend = frontend
        self._prompts = prompts
        self._metrics = metrics
        self._model_names = model_names
        self._writer = LogprobsWriter(prompts.tokenizer_or_none)

    async def completions(self, request: Request) -> Response:
        """``POST /v1/completions``."""
        body = await read_body(request, CompletionRequest, self._model_names)
        prompts = await self._prompts.of_completion(body)
        grammar = await grammar_of(body)
        answers = [
            answer
            for prompt in prompts
            for answer in self._answers(body, prompt, "prompt", grammar)
        ]
        shown = [
            self._prompts.shown(prompt, skip_special=body.skip_special_tokens)
            for prompt in prompts
            for _ in range(body.n)
            if body.echo
        ]
        form = CompletionForm(self._model_names[0], request_id_of(request), self._writer, body)
        if body.echo:
            form.echo([prompt for prompt in prompts for _ in range(body.n)], shown)
        usage = Usage(sum(map(len, prompts)), answers)
        return await respond(request, body, form, answers, usage)

    async def chat(self, request: Request) -> Response:
        """``POST /v1/chat/completions``."""
        body = await read_body(request, ChatRequest, self._model_names)
        prompt = await self._prompts.of_chat(body)
        answers = self._answers(body, prompt, "messages", await grammar_of(body))
        form = ChatForm(self._model_names[0], request_id_of(request), self._writer, body)
        return await respond(request, body, form, answers, Usage(len(prompt), answers))

    def _answers(
        self, body: AnswerFields, prompt: list[int], param: str, grammar: str
    ) -> list[Answer]:
        """The answers to one prompt, one for each choice."""
        rules = TextRules(
            stops=body.stops,
            keeps_stop=body.include_stop_str_in_output,
            skip_special=body.skip_special_tokens,
            min_tokens=body.min_tokens,
            is_hidden=body.max_tokens == 0,
        )
        tokenizer = self._prompts.tokenizer_or_none
        return [
            Answer(self._frontend, generation, tokenizer, rules, self._metrics)
            for generation in self._prompts.requests(body, prompt, param, grammar)
        ]
