"""Traces whose requests belong together: turns of sessions, and what their prompts share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count, islice
from pathlib import Path

from helixsim.errors import TraceError
from helixsim.requests import SessionTurn, SharedPrefix, TraceRequest
from helixsim.traces.optional_columns import NOTHING, Extra, shared_prefixes
from helixsim.traces.rows import ReadRow

BLOCK_TOKENS = 16
"""Tokens of a block of which only the conversation is known, as in the KV cache."""


def can_run(read: ReadRow) -> bool:
    """Whether a row has prompt tokens and output tokens."""
    return read.row is not None and bool(read.row[1] and read.row[2])


def prefixes_of(rows: Sequence[ReadRow]) -> list[SharedPrefix | None]:
    """What the prompt of each row may share with others: by its hashes, or as turn of a session.

    Sessions count only in a file that has no hashes; rows that cannot be run share nothing.
    """
    if all(read.extra is NOTHING for read in rows):
        return [None] * len(rows)
    kept = [(read.row, read.extra) for read in rows if read.row is not None and can_run(read)]
    extras = [extra for _, extra in kept]
    lengths = [(prompt, output) for (_, prompt, output), _ in kept]
    parents = list(_parents(extras))
    if any(extra.knows_hashes for extra in extras):
        found = shared_prefixes(extras, (prompt for prompt, _ in lengths))
        _add_answers(found, lengths, parents)
    else:
        found = _conversation_prefixes(lengths, parents)
    of_kept = iter(found)
    return [next(of_kept) if can_run(read) else None for read in rows]


def _add_answers(
    prefixes: list[SharedPrefix | None],
    lengths: Sequence[tuple[int, int]],
    parents: Sequence[int | None],
) -> None:
    """Let the prefix of a turn go on through its answer, as the prompt of the next turn has it."""
    extended = set()
    for number, parent in enumerate(parents):
        if parent is None or parent in extended:
            continue
        own, before = prefixes[number], prefixes[parent]
        if own is None or before is None or own.block_tokens != before.block_tokens:
            continue
        prompt, num_tokens, size = lengths[parent][0], sum(lengths[parent]), own.block_tokens
        num_blocks = -(-num_tokens // size)
        # The last block of a prompt is another one when it is full; of 16 tokens, few are lost.
        num_alike = prompt // size if size <= BLOCK_TOKENS else -(-prompt // size)
        fits = lengths[number][0] >= num_tokens and len(own.keys) >= num_blocks
        if fits and own.keys[:num_alike] == before.keys[:num_alike]:
            whole = num_tokens % size == 0
            keys = own.keys[:num_blocks]
            prefixes[parent] = SharedPrefix(keys, size, None if whole else num_tokens)
            extended.add(parent)


def _conversation_prefixes(
    lengths: Sequence[tuple[int, int]], parents: Sequence[int | None]
) -> list[SharedPrefix | None]:
    """Prefixes of turns, each of which begins with the turn before it, and its answer.

    A prompt that is too short for that begins with the prompt before it alone (the answer was not
    kept), or with neither.
    """
    linked = {parent for parent in parents if parent is not None}
    new_keys = count()
    found: list[SharedPrefix | None] = []
    for number, ((prompt, output), parent) in enumerate(zip(lengths, parents, strict=True)):
        if parent is None and number not in linked:
            found.append(None)
            continue
        beginning: tuple[int, ...] = ()
        if parent is not None and (before := found[parent]) is not None:
            shared = _shared_tokens(prompt, lengths[parent])
            beginning = before.keys[: shared // BLOCK_TOKENS]  # type: ignore[assignment]
        num_own = (prompt + output) // BLOCK_TOKENS - len(beginning)
        keys = beginning + tuple(islice(new_keys, num_own))
        found.append(SharedPrefix(keys, BLOCK_TOKENS) if keys else None)
    return found


def _shared_tokens(prompt: int, before: tuple[int, int]) -> int:
    prompt_before, output_before = before
    if prompt >= prompt_before + output_before:
        return prompt_before + output_before
    return prompt_before if prompt >= prompt_before else 0


def _parents(extras: Iterable[Extra]) -> Iterator[int | None]:
    """Number of the turn before each, in order of the file; None for a first turn."""
    chats: dict[str, int] = {}
    sessions: dict[str, int] = {}
    for number, extra in enumerate(extras):
        parent = chats.get(extra.parent_chat_id) if extra.parent_chat_id else None
        if parent is None and extra.session_id:
            parent = sessions.get(extra.session_id)
        yield parent
        if extra.chat_id:
            chats[extra.chat_id] = number
        if extra.session_id:
            sessions[extra.session_id] = number


@dataclass(slots=True)
class _Session:
    """A first turn with its time, and the turns after it; without turns, times of later ones."""

    at: float
    lengths: tuple[int, int] | None = None
    prefix: SharedPrefix | None = None
    priority: int = 0
    later: list[SessionTurn] = field(default_factory=list)


def requests_of(
    path: Path,
    rows: Sequence[ReadRow],
    prefixes: Sequence[SharedPrefix | None],
    *,
    origin: float,
    ticks_per_s: float,
    delay_ticks_per_s: float,
) -> list[TraceRequest]:
    """The requests of rows, in their order, with the later turns of their sessions.

    Parameters
    ----------
    path
        The file, for messages.
    rows
        Rows of the file, in its order. Rows without prompt tokens or output tokens are left out;
        a turn after such a row takes its place.
    prefixes
        What the prompts of the rows share.
    origin
        Time that becomes 0.
    ticks_per_s, delay_ticks_per_s
        Unit of the times and of the delays.

    Raises
    ------
    TraceError
        If a row with a delay has no turn before it.
    """
    found: list[_Session] = []
    latest: dict[str, _Session] = {}
    for read, prefix in zip(rows, prefixes, strict=True):
        if read.row is None:
            continue
        (time, prompt, output), extra = read.row, read.extra
        if extra.delay is None:
            session = _Session((time - origin) / ticks_per_s)
            found.append(session)
            if extra.session_id:
                latest[extra.session_id] = session
        elif extra.session_id in latest:
            session = latest[extra.session_id]
        else:
            raise TraceError(
                f"has no time, and no turn of session {extra.session_id} is before it; the first "
                "turn of a session needs a time",
                file=path,
                where=read.place,
            )
        delay_s = (extra.delay or 0.0) / delay_ticks_per_s
        if session.lengths is None:
            session.at += delay_s
            if can_run(read):
                session.lengths, session.prefix = (prompt, output), prefix
                session.priority = extra.priority
        elif can_run(read):
            session.later.append(SessionTurn(delay_s, prompt, output, prefix, extra.priority))
    return [
        TraceRequest(
            each.at, *each.lengths, each.prefix, each.priority, later_turns=tuple(each.later)
        )
        for each in found
        if each.lengths is not None
    ]
