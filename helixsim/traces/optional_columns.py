"""Columns that a trace of requests may have in any format: prefixes, priorities, sessions.

``hash_ids`` are hashes of the blocks of a prompt, ``block_tokens`` is the size of such a block
where it is not that of the format, and ``priority`` is the request's priority. ``session_id``, or
``chat_id`` and ``parent_chat_id``, tell which requests are turns of one conversation; a turn with
a ``delay`` and without a time follows the end of the turn before it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from helixsim.errors import InputError
from helixsim.requests import SessionTurn, SharedPrefix, TraceRequest
from helixsim.traces import fields

HASH_IDS, BLOCK_TOKENS, PRIORITY = "hash_ids", "block_tokens", "priority"
SESSION_ID, DELAY = "session_id", "delay"
CHAT_ID, PARENT_CHAT_ID = "chat_id", "parent_chat_id"
OPTIONAL_COLUMNS = (HASH_IDS, BLOCK_TOKENS, PRIORITY)
"""Columns of a written trace whose requests share or have priorities."""
SESSION_COLUMNS = (SESSION_ID, DELAY)
"""Columns besides of a written trace with later turns."""
LINK_COLUMNS = (CHAT_ID, PARENT_CHAT_ID)
"""Columns that formats may need to be told by, and do not read themselves."""
READ_COLUMNS = OPTIONAL_COLUMNS + SESSION_COLUMNS + LINK_COLUMNS


class Extra(NamedTuple):
    """What the optional columns of a row say.

    Attributes
    ----------
    hash_ids
        Hashes of the blocks of the prompt; the last block may be shorter.
    knows_hashes
        Whether the file has hashes, even if not for this row.
    block_tokens
        Tokens of a block.
    priority
        As :class:`~helixsim.requests.TraceRequest`.
    session_id
        Session of which it is a turn; empty if not given.
    delay
        Time from the end of the turn before it, in the unit of the file's times; None if the row
        has a time of its own.
    chat_id, parent_chat_id
        Its own name as a turn, and that of the turn before it; empty if not given.
    """

    hash_ids: tuple[int, ...] = ()
    block_tokens: int = 0
    priority: int = 0
    session_id: str = ""
    delay: float | None = None
    chat_id: str = ""
    parent_chat_id: str = ""
    knows_hashes: bool = False


NOTHING = Extra()


def read_extra(values: Mapping[str, object], block_tokens: int) -> Extra:
    """Read the optional columns of a row; an empty field says nothing.

    Parameters
    ----------
    values
        Column -> field, as in the file.
    block_tokens
        Size of a block in the format.

    Raises
    ------
    ValueError
        If a field is none of its kind.
    """
    given = {name: value for name, value in values.items() if value not in (None, "")}
    knows_hashes = HASH_IDS in values
    if not given:
        return NOTHING._replace(knows_hashes=knows_hashes)
    try:
        name = HASH_IDS
        hash_ids = fields.hashes(given[name]) if name in given else ()
        name = BLOCK_TOKENS
        size = fields.count(given[name]) if name in given else block_tokens
        if not size:
            raise ValueError("a block has at least one token")  # noqa: TRY301
        name = PRIORITY
        priority = fields.integer(given[name]) if name in given else 0
        name = DELAY
        # Without a session, a column of this name means another thing.
        follows = name in given and SESSION_ID in given
        delay = fields.time(given[name]) if follows else None
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    names = (str(given.get(name, "")) for name in (SESSION_ID, CHAT_ID, PARENT_CHAT_ID))
    session_id, chat_id, parent_chat_id = names
    return Extra(hash_ids, size, priority, session_id, delay, chat_id, parent_chat_id, knows_hashes)


def shared_prefixes(extras: Sequence[Extra], prompts: Iterable[int]) -> list[SharedPrefix | None]:
    """What each of the prompts of a trace may share with the others.

    Where a hash always follows the same one, it stands for all tokens up to it, and is a key. In a
    file in which one does not, hashes stand for blocks by themselves: then a key is a number for
    each hash and all hashes before it.

    Parameters
    ----------
    extras
        What the file says, in order of the requests.
    prompts
        Prompt tokens of each request.
    """
    rows = [extra.hash_ids for extra in extras]
    if not _stand_for_prefixes(rows):
        numbers: dict[tuple[int, int], int] = {}
        rows = [_chained(row, numbers) for row in rows]
    return [
        _prefix(keys, extra.block_tokens, prompt)
        for keys, extra, prompt in zip(rows, extras, prompts, strict=True)
    ]


def _stand_for_prefixes(rows: Iterable[Sequence[int]]) -> bool:
    before: dict[int, int] = {}
    for row in rows:
        last = -1
        for each in row:
            if before.setdefault(each, last) != last:
                return False
            last = each
    return True


def _chained(row: Sequence[int], numbers: dict[tuple[int, int], int]) -> tuple[int, ...]:
    keys: list[int] = []
    last = -1
    for each in row:
        last = numbers.setdefault((last, each), len(numbers))
        keys.append(last)
    return tuple(keys)


def _prefix(keys: tuple[int, ...], block_tokens: int, prompt_tokens: int) -> SharedPrefix | None:
    if not keys:
        return None
    is_whole = len(keys) * block_tokens <= prompt_tokens
    return SharedPrefix(keys, block_tokens, None if is_whole else prompt_tokens)


def written(request: TraceRequest | SessionTurn) -> tuple[str, str, str]:
    """The optional columns of a request, as text.

    Raises
    ------
    InputError
        If a key of its prefix is not a whole number from 0 on.
    """
    prefix = request.prefix
    priority = str(request.priority or "")
    if prefix is None:
        return "", "", priority
    if not all(isinstance(key, int) and 0 <= key <= fields.MAX_HASH for key in prefix.keys):
        raise InputError("the keys of a prefix can be written only if they are whole numbers")
    return " ".join(map(str, prefix.keys)), str(prefix.block_tokens), priority
