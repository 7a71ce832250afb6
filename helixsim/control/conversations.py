"""Load in which prompts begin alike: common beginnings, and conversations of several turns.

Blocks of :data:`~helixsim.profiles.kv_memory.BLOCK_TOKENS` tokens are what requests share.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple, overload

from helixsim.control.load import Arrival
from helixsim.control.sessions import Sessions
from helixsim.profiles.kv_memory import BLOCK_TOKENS
from helixsim.requests import SessionTurn, SharedPrefix

if TYPE_CHECKING:
    from random import Random


class CommonBeginnings:
    """Texts with which prompts begin, such as system prompts: one of them is drawn for each prompt.

    Parameters
    ----------
    num_texts
        How many there are; each is equally likely.
    num_tokens
        Length of each; a shorter prompt is the beginning of one.
    rng
        The random stream to draw from.
    owner
        The class of users whose texts they are; empty if all users share them.
    """

    def __init__(self, num_texts: int, num_tokens: int, rng: Random, owner: str = "") -> None:
        self._num_texts = num_texts
        self._num_tokens = num_tokens
        self._rng = rng
        self._owner = (owner,) if owner else ()

    def draw(self, prompt_tokens: int) -> SharedPrefix | None:
        """Draw what a prompt begins with; None if that is shorter than a block."""
        key = "beginning", self._rng.randrange(self._num_texts), *self._owner
        num_blocks = min(self._num_tokens, prompt_tokens) // BLOCK_TOKENS
        return SharedPrefix((key,) * num_blocks, BLOCK_TOKENS) if num_blocks else None


def system_prompt(num_tokens: int, owner: str = "") -> SharedPrefix | None:
    """What all conversations begin with, or these of a class of users; None if below a block."""
    num_blocks = num_tokens // BLOCK_TOKENS
    return SharedPrefix((("system", owner),) * num_blocks, BLOCK_TOKENS) if num_blocks else None


class NewTurn(NamedTuple):
    """A turn of a conversation after the first.

    Attributes
    ----------
    think_time_s
        From the last token of the answer before it to this turn.
    new_tokens, output_tokens
        Tokens that it adds to the conversation: by the user, and as the answer.
    """

    think_time_s: float
    new_tokens: int
    output_tokens: int


class Start(NamedTuple):
    """The first turn of a conversation, and the later ones."""

    arrival: Arrival
    later_turns: tuple[NewTurn, ...] = ()


class Conversations(Sessions):
    """An open loop of conversations: the next turn comes some time after the answer to the last.

    Its prompt is the whole conversation so far and new tokens. A turn that is rejected is the last
    of its conversation.

    Parameters
    ----------
    starts
        The conversations, in order of their first turns.
    end_s
        Later turns do not come.
    """

    def __init__(self, starts: Iterable[Start], *, end_s: float) -> None:
        talks = (_Conversation(start, number) for number, start in enumerate(starts))
        super().__init__(talks, end_s=end_s)


@dataclass(frozen=True, slots=True)
class _Conversation(Sequence[SessionTurn]):
    """A conversation as a session; as a sequence, its later turns, which are made when asked for.

    Prompts of long conversations share many blocks, whose keys would fill the memory.
    """

    start: Start
    number: int

    @property
    def first(self) -> Arrival:
        arrival = self.start.arrival
        prefix = self._prefix(arrival.prompt_tokens + arrival.output_tokens)
        return replace(arrival, prefix=prefix)

    @property
    def later_turns(self) -> Sequence[SessionTurn]:
        return self

    def __len__(self) -> int:
        return len(self.start.later_turns)

    @overload
    def __getitem__(self, turn: int) -> SessionTurn: ...
    @overload
    def __getitem__(self, turn: slice) -> Sequence[SessionTurn]: ...
    def __getitem__(self, turn: int | slice) -> SessionTurn | Sequence[SessionTurn]:
        if isinstance(turn, slice):
            return [self[each] for each in range(len(self))[turn]]
        arrival = self.start.arrival
        before = self.start.later_turns[:turn]
        think_time_s, new_tokens, output_tokens = self.start.later_turns[turn]
        num_tokens = arrival.prompt_tokens + arrival.output_tokens
        num_tokens += sum(each.new_tokens + each.output_tokens for each in before)
        prompt_tokens = num_tokens + new_tokens
        prefix = self._prefix(prompt_tokens + output_tokens)
        return SessionTurn(think_time_s, prompt_tokens, output_tokens, prefix, arrival.priority)

    def _prefix(self, num_tokens: int) -> SharedPrefix:
        """Keys of a conversation of this number of tokens, the answer included."""
        shared = self.start.arrival.prefix
        beginning = () if shared is None else shared.keys
        num_own = num_tokens // BLOCK_TOKENS - len(beginning)
        keys = beginning + (("conversation", self.number),) * num_own
        return SharedPrefix(keys, BLOCK_TOKENS)
