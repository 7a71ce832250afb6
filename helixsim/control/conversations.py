"""Load in which prompts begin alike: common beginnings, and conversations of several turns.

Blocks of :data:`~helixsim.profiles.kv_memory.BLOCK_TOKENS` tokens are what requests share.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple

from helixsim.control.load import Arrival, LengthPair
from helixsim.profiles.kv_memory import BLOCK_TOKENS
from helixsim.requests import SharedPrefix

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
    """

    def __init__(self, num_texts: int, num_tokens: int, rng: Random) -> None:
        self._num_texts = num_texts
        self._num_tokens = num_tokens
        self._rng = rng

    def draw(self, prompt_tokens: int) -> SharedPrefix | None:
        """Draw what a prompt begins with; None if that is shorter than a block."""
        key = "beginning", self._rng.randrange(self._num_texts)
        num_blocks = min(self._num_tokens, prompt_tokens) // BLOCK_TOKENS
        return SharedPrefix((key,) * num_blocks, BLOCK_TOKENS) if num_blocks else None


class Start(NamedTuple):
    """The first turn of a conversation, and the new tokens and the answer of each later one."""

    arrival: Arrival
    later_turns: tuple[LengthPair, ...]


class _Turn(NamedTuple):
    conversation: int
    number: int
    num_tokens: int
    """Tokens of the conversation, the answer included."""


class Conversations:
    """An open loop of conversations: the next turn comes some time after the answer to the last.

    Its prompt is the whole conversation so far and new tokens. A turn that is rejected is the last
    of its conversation.

    Parameters
    ----------
    starts
        The conversations, in order of their first turns.
    think_time_s
        From the last token of an answer to the next turn.
    end_s
        Later turns do not come.
    """

    def __init__(self, starts: Iterable[Start], *, think_time_s: float, end_s: float) -> None:
        self._starts = list(starts)
        self._think_time_s = think_time_s
        self._end_s = end_s
        self._num_created = 0
        self._turns: dict[int, _Turn] = {}

    def opening(self) -> Iterator[Arrival]:
        """No request is there when the run begins."""
        return iter(())

    def later(self) -> Iterator[Arrival]:
        """The first turns, in order of time."""
        for conversation, start in enumerate(self._starts):
            yield self._arrival(
                _Turn(conversation, 0, 0),
                start.arrival.at_s,
                (start.arrival.prompt_tokens, start.arrival.output_tokens),
            )

    def after_prompt(self, now: float, share: float | None, index: int) -> Arrival | None:
        """The next turn waits for the answer."""
        return None

    def after_end(self, now: float, share: float | None, index: int | None) -> Arrival | None:
        """The next turn of the conversation whose turn has ended, if it has one."""
        last = None if index is None else self._turns.pop(index, None)
        at = now + self._think_time_s
        if last is None or at > self._end_s:
            return None
        turns = self._starts[last.conversation].later_turns
        if last.number == len(turns):
            return None
        return self._arrival(last._replace(number=last.number + 1), at, turns[last.number])

    def _arrival(self, turn: _Turn, at_s: float, lengths: LengthPair) -> Arrival:
        """The request of a turn, given the tokens before it; requests are numbered as created."""
        new_tokens, output_tokens = lengths
        prompt_tokens = turn.num_tokens + new_tokens
        turn = turn._replace(num_tokens=prompt_tokens + output_tokens)
        self._turns[self._num_created] = turn
        self._num_created += 1
        start = self._starts[turn.conversation].arrival
        beginning = () if start.prefix is None else start.prefix.keys
        num_own = turn.num_tokens // BLOCK_TOKENS - len(beginning)
        keys = beginning + (("conversation", turn.conversation),) * num_own
        return Arrival(
            at_s, prompt_tokens, output_tokens, SharedPrefix(keys, BLOCK_TOKENS), start.priority
        )
