"""Trace files that are one JSON document: ShareGPT conversations, results of `vllm bench serve`."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path

from helixsim.errors import TraceError
from helixsim.traces.bench_result import BenchLists
from helixsim.traces.formats import SHAREGPT, VLLM_BENCH, Format
from helixsim.traces.optional_columns import NOTHING
from helixsim.traces.rows import ReadRow, Rows, row_error
from helixsim.traces.text_files import open_text

CHARACTERS_PER_TOKEN = 4
"""Of English text in the tokenizers of common LLMs, about."""

_HEAD_CHARS = 65536
_BENCH_KEYS = ('"input_lens"', '"request_throughput"')
_PROMPT_SIDE, _ANSWER_SIDE = ("human", "user"), ("gpt", "assistant", "chatgpt", "bing", "bard")


def read_document(
    path: Path, form: Format | None, count_tokens: Callable[[str], int] | None
) -> Rows | None:
    """Read a file that is one JSON document; None for a file of rows.

    ShareGPT may also have one conversation in each line.

    Parameters
    ----------
    path
        The file.
    form
        Its format; if not given, its first characters tell.
    count_tokens
        Tokens of a text; a quarter of its characters if not given.

    Raises
    ------
    TraceError
        If the document is invalid.
    """
    with open_text(path) as text:
        head = text.read(_HEAD_CHARS)
        found = _detect(head)
        if found is None:
            return None
        if found is VLLM_BENCH and form is not None and not form.is_document:
            return None  # the first line of a format of yours may have these keys
        if form is not None and form is not found:
            raise TraceError(f"is {found.title}, not {form.title}", file=path)
        whole = head + text.read()
    if found is SHAREGPT:
        talks = _parsed(path, whole) if whole.lstrip()[0] == "[" else _parsed_lines(path, whole)
        return _conversations(path, talks, count_tokens)
    return _bench_result(path, _parsed(path, whole))


def _detect(head: str) -> Format | None:
    start = head.lstrip()[:1]
    if start == "[" or (start == "{" and '"conversations"' in head.lstrip().partition("\n")[0]):
        return SHAREGPT
    is_bench = start == "{" and any(key in head for key in _BENCH_KEYS)
    return VLLM_BENCH if is_bench else None


def _parsed(path: Path, text: str) -> object:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        hint = "; keep one in a file" if error.msg == "Extra data" else ""
        message = f"is not one JSON document: {error}{hint}"
        raise row_error(path, error.lineno, message) from error
    except (ValueError, RecursionError) as error:
        raise TraceError(f"is not one JSON document: {error}", file=path) from error


def _parsed_lines(path: Path, text: str) -> list[object]:
    talks = []
    for number, line in enumerate(text.split("\n"), start=1):
        try:
            talks += [json.loads(line)] if line.strip() else []
        except (ValueError, RecursionError) as error:
            raise row_error(path, number, f"is no JSON object: {error}") from error
    return talks


# -- ShareGPT


def _conversations(path: Path, document: object, count_tokens: Callable[[str], int] | None) -> Rows:
    assert isinstance(document, list)
    count = count_tokens or _quarter_of_characters
    rows: list[ReadRow] = []
    num_empty = 0
    for number, talk in enumerate(document):
        turns = _of(talk, "conversations", "messages") if isinstance(talk, dict) else None
        if not isinstance(turns, list):
            raise TraceError(
                f"is no conversation of {SHAREGPT.title}: a list of turns by the name of "
                "conversations",
                file=path,
                where=f"[{number}]",
            )
        before = len(rows)
        for at, (prompt, answer) in _pairs(path, number, turns):
            place = f"[{number}].conversations[{at}]"
            rows.append(ReadRow((0, count(prompt), count(answer)), NOTHING, place))
        num_empty += len(rows) == before
    if not rows:
        raise TraceError("no conversation in it has a prompt and its answer", file=path)
    notes = []
    if num_empty:
        notes.append(
            f"{path.name}: {num_empty} of {len(document)} conversations left out: they have no "
            "prompt with an answer"
        )
    if count_tokens is None:
        notes.append(
            f"{path.name}: lengths are characters / {CHARACTERS_PER_TOKEN}, for want of a tokenizer"
        )
    return Rows(SHAREGPT, rows, tuple(notes))


def _pairs(path: Path, number: int, turns: list[object]) -> Iterator[tuple[int, tuple[str, str]]]:
    """Each prompt that an answer follows at once, with the number of its turn."""
    said = [_turn(path, f"[{number}].conversations[{at}]", turn) for at, turn in enumerate(turns)]
    for at in range(len(said) - 1):
        (side, prompt), (next_side, answer) = said[at : at + 2]
        if side in _PROMPT_SIDE and next_side in _ANSWER_SIDE:
            yield at, (prompt, answer)


def _turn(path: Path, place: str, turn: object) -> tuple[str, str]:
    if isinstance(turn, dict):
        side, text = _of(turn, "from", "role"), _of(turn, "value", "content")
        if isinstance(side, str) and isinstance(text, str):
            return side, text
    raise TraceError('is no turn such as {"from": "human", "value": "..."}', file=path, where=place)


def _of(value: dict[str, object], name: str, other: str) -> object:
    """A field by its name in ShareGPT, or by that in requests of OpenAI's API."""
    return value.get(name, value.get(other))


def _quarter_of_characters(text: str) -> int:
    return math.ceil(len(text) / CHARACTERS_PER_TOKEN)


# -- vLLM


def _bench_result(path: Path, document: object) -> Rows:
    if not isinstance(document, dict):
        raise TraceError("should be an object", file=path)
    lists = BenchLists(path, document)
    prompts, answers = lists.counts("input_lens"), lists.counts("output_lens")
    kept = [number for number, failed in enumerate(lists.failed()) if not failed]
    sent, notes = lists.sent(kept) if kept else ([], ())
    times = dict(zip(kept, sent, strict=True))
    rows = [
        ReadRow(
            None if number not in times else (times[number], prompts[number], answers[number]),
            NOTHING,
            f"input_lens[{number}]",
        )
        for number in range(len(prompts))
    ]
    return Rows(VLLM_BENCH, rows, tuple(f"{path.name}: {note}" for note in notes))
