"""Structured output: the grammar that a request asks its answer to follow."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable
from typing import Any

from helixreal.engines.engine import MAX_GRAMMAR
from helixreal.engines.grammar import problem_of
from helixreal.serving.errors import ApiError
from helixreal.serving.requests import AnswerFields, StructuredOutputs

_KINDS = "text, json_object or json_schema"


async def grammar_of(body: AnswerFields) -> str:
    """The grammar of a request, as llguidance writes it; empty for none.

    Raises
    ------
    ApiError
        If it asks for several, or the grammar is not valid, or llguidance is not installed.
    """
    wanted = [each for each in (_of_format(body), *_of_structured(body)) if each is not None]
    if not wanted:
        return ""
    if len(wanted) > 1:
        raise ApiError(
            400, f"{wanted[1][0]}: give one kind of structured output", param=wanted[1][0]
        )
    ((param, make),) = wanted
    # The checks of a large grammar take up to a second, and let other threads run.
    return await asyncio.to_thread(_checked, param, make)


def _checked(param: str, make: Callable[[Any], str]) -> str:
    try:
        from llguidance import LLMatcher
    except ModuleNotFoundError as error:
        raise ApiError(
            400,
            f"{param}: structured output is not available on this server; it needs "
            "pip install 'helixsim[structured]'",
            param=param,
        ) from error
    try:
        grammar = make(LLMatcher)
        problem = LLMatcher.validate_grammar(grammar)
    except ValueError as error:
        grammar, problem = "", str(error)
    if problem and not problem.startswith("WARNING"):
        raise ApiError(400, f"{param}: {problem}", param=param)
    if len(grammar) > MAX_GRAMMAR:
        raise ApiError(400, f"{param}: has more than {MAX_GRAMMAR} characters", param=param)
    if problem := problem_of(grammar):
        raise ApiError(400, f"{param}: cannot be applied: {problem}", param=param)
    return grammar


_Wanted = tuple[str, Callable[[Any], str]]


def _of_format(body: AnswerFields) -> _Wanted | None:
    """What ``response_format`` asks for."""
    asked = body.response_format
    if asked is None or asked.type == "text":
        return None
    if asked.type == "json_object":
        return "response_format", _from_schema({"type": "object"})
    holder = asked.json_schema or {}
    schema = holder.get("schema", holder.get("json_schema"))
    if asked.type != "json_schema" or not isinstance(schema, dict):
        raise ApiError(
            400,
            f"response_format: type should be {_KINDS}, the last with json_schema.schema",
            param="response_format",
        )
    return "response_format", _from_schema(schema)


def _of_structured(body: AnswerFields) -> list[_Wanted]:
    """What ``structured_outputs``, and the older ``guided_...`` fields, ask for."""
    older = StructuredOutputs(
        json_value=body.guided_json,
        regex=body.guided_regex,
        choice=body.guided_choice,
        grammar=body.guided_grammar,
    )
    found = []
    for fields, prefix in ((body.structured_outputs, "structured_outputs."), (older, "guided_")):
        if fields is None:
            continue
        if fields.json_object:
            found.append((f"{prefix}json_object", _from_schema({"type": "object"})))
        if (schema := fields.json_value) is not None:
            found.append((f"{prefix}json", _from_schema(schema)))
        if (regex := fields.regex) is not None:
            found.append((f"{prefix}regex", _from_regex(regex)))
        if (choices := fields.choice) is not None:
            regex = "|".join(re.escape(each) for each in choices)
            found.append((f"{prefix}choice", _from_regex(f"({regex})")))
        if (lark := fields.grammar) is not None:
            found.append((f"{prefix}grammar", _from_lark(lark)))
    return found


def _from_schema(schema: dict[str, Any] | str) -> Callable[[Any], str]:
    text = schema if isinstance(schema, str) else json.dumps(schema)
    return lambda matcher: str(matcher.grammar_from_json_schema(text))


def _from_regex(regex: str) -> Callable[[Any], str]:
    return lambda matcher: str(matcher.grammar_from_regex(regex))


def _from_lark(lark: str) -> Callable[[Any], str]:
    return lambda matcher: str(matcher.grammar_from_lark(lark))
