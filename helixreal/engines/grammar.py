"""Answers that follow a grammar, by llguidance: which tokens may come next.

llguidance computes the allowed tokens as they are needed. It compiles nothing in advance whose size
a client could choose, and needs no other package.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_MAX_MATCHERS = 1024
"""Matchers that are kept; an older request's is made again from its answer."""
_MOST_FUEL = 200_000
"""Limits the work on a regular expression, in units of llguidance. Its default, five times as much,
lets one request stop all others of its batch for several seconds."""
_TRIED_TOKENS = 3


class GrammarError(Exception):
    """A grammar cannot be applied to a request; the message is shown to users."""


@dataclass(slots=True)
class _State:
    matcher: Any
    grammar: str
    num_tokens: int = 0


class Grammars:
    """The states of requests with grammars, on the node that samples their tokens.

    Parameters
    ----------
    folder
        Folder of the model, with tokenizer.json.
    """

    def __init__(self, folder: str | None) -> None:
        self._folder = folder
        self._tokenizer: Any = None
        self._states: OrderedDict[Hashable, _State] = OrderedDict()

    def allowed(
        self, key: Hashable, grammar: str, answer: Sequence[int], stop_tokens: Sequence[int]
    ) -> bytearray:
        """Which tokens may come next: one byte for each token, 0 if it may not.

        Parameters
        ----------
        key
            Identifies the request.
        grammar
            The grammar, as llguidance writes it.
        answer
            The tokens of the answer so far.
        stop_tokens
            Tokens that end the answer: they may come where the grammar allows an end.

        Raises
        ------
        GrammarError
            If the grammar is not valid, or the answer does not follow it.
        """
        state = self._state(key, grammar, answer)
        matcher = state.matcher
        found = bytearray(len(stop_tokens) and max(stop_tokens) + 1)
        if not matcher.is_stopped():
            bias = matcher.compute_logit_bias()
            found[: len(bias)] = bias
        may_end = matcher.is_accepting() or matcher.is_stopped()
        if matcher.is_error():
            raise GrammarError(f"the grammar cannot be applied: {_error_of(matcher)}")
        for token in stop_tokens:
            found[token] = may_end
        return found

    def _state(self, key: Hashable, grammar: str, answer: Sequence[int]) -> _State:
        state = self._states.get(key)
        if state is None or state.grammar != grammar or state.num_tokens > len(answer):
            state = _State(self._matcher(grammar), grammar)
            self._states[key] = state
            while len(self._states) > _MAX_MATCHERS:
                self._states.popitem(last=False)
        self._states.move_to_end(key)
        for token in answer[state.num_tokens :]:
            # Where decodes loop, a node may go on until it hears of the end of the answer; what it
            # makes then is not sent.
            if state.matcher.is_stopped():
                break
            if not state.matcher.consume_tokens([token]):
                raise GrammarError(f"the answer left the grammar: {_error_of(state.matcher)}")
        state.num_tokens = len(answer)
        return state

    def _matcher(self, grammar: str) -> Any:  # noqa: ANN401 llguidance is optional
        try:
            from llguidance import LLTokenizer
        except ModuleNotFoundError as error:
            raise GrammarError(
                f"a node lacks {error.name}: pip install 'helixsim[structured]'"
            ) from error
        if self._tokenizer is None:
            folder = Path(self._folder or "")
            try:
                text = (folder / "tokenizer.json").read_text(encoding="utf-8")
                config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
                self._tokenizer = LLTokenizer(text, eos_token=config.get("eos_token_id"))
            except (OSError, ValueError) as error:
                raise GrammarError(f"a node cannot read its model's tokenizer: {error}") from error
        return _matcher_of(self._tokenizer, grammar)


def problem_of(grammar: str) -> str:
    """Why a grammar is too complex for a node; empty if it is not.

    The first tokens are tried, with single bytes for tokens: only then does llguidance do the work
    that it limits.

    Raises
    ------
    ModuleNotFoundError
        If llguidance is not installed.
    """
    from llguidance import LLTokenizer

    matcher = _matcher_of(LLTokenizer("byte"), grammar)
    for _ in range(_TRIED_TOKENS):
        bias = matcher.compute_logit_bias()
        may_come = [token for token, flag in enumerate(bias) if flag]
        if matcher.is_error() or not may_come:
            break
        matcher.consume_tokens([may_come[len(may_come) // 2]])
        if matcher.is_error() or matcher.is_stopped():
            break
    return _error_of(matcher) if matcher.is_error() else ""


def _matcher_of(tokenizer: Any, grammar: str) -> Any:  # noqa: ANN401 llguidance is optional
    from llguidance import LLMatcher, LLParserLimits

    limits = LLParserLimits(initial_lexer_fuel=_MOST_FUEL)
    return LLMatcher(tokenizer, grammar, log_level=0, limits=limits)


def _error_of(matcher: Any) -> str:  # noqa: ANN401
    """The error of a matcher; its first line says what it is."""
    return str(matcher.get_error()).partition("\n")[0]
