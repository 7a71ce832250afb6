"""Load in which a request follows the end of another: sessions of several turns."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple, Protocol

from helixsim.control.load import Arrival
from helixsim.requests import SessionTurn


class Session(Protocol):
    """Requests of one user, each after the end of the one before it."""

    @property
    def first(self) -> Arrival:
        """The first turn, with its time."""
        ...

    @property
    def later_turns(self) -> Sequence[SessionTurn]:
        """The other turns, in order."""
        ...


class RecordedSession(NamedTuple):
    """A session whose turns are known from the start, as a trace has it."""

    first: Arrival
    later_turns: Sequence[SessionTurn] = ()


class _Turn(NamedTuple):
    session: int
    number: int
    """Number among the later turns of the turn that follows."""


class Sessions:
    """An open loop of sessions: a later turn comes some time after the end of the one before it.

    A turn that is rejected is the last of its session.

    Parameters
    ----------
    sessions
        The sessions, in order of their first turns.
    end_s
        Later turns do not come.
    """

    def __init__(self, sessions: Iterable[Session], *, end_s: float) -> None:
        self._sessions = list(sessions)
        self._end_s = end_s
        self._num_created = 0
        self._turns: dict[int, _Turn] = {}

    def opening(self) -> Iterator[Arrival]:
        """No request is there when the run begins."""
        return iter(())

    def later(self) -> Iterator[Arrival]:
        """The first turns, in order of time."""
        for number, session in enumerate(self._sessions):
            yield self._created(session.first, _Turn(number, 0))

    def after_prompt(self, now: float, share: float | None, index: int) -> Arrival | None:
        """The next turn waits for the answer."""
        return None

    def after_end(self, now: float, share: float | None, index: int | None) -> Arrival | None:
        """The next turn of the session whose turn has ended, if it has one."""
        ended = None if index is None else self._turns.pop(index, None)
        if ended is None:
            return None
        session = self._sessions[ended.session]
        turns = session.later_turns
        if ended.number == len(turns):
            return None
        turn = turns[ended.number]
        if now + turn.delay_s > self._end_s:
            return None
        arrival = replace(
            session.first,
            at_s=now + turn.delay_s,
            prompt_tokens=turn.prompt_tokens,
            output_tokens=turn.output_tokens,
            prefix=turn.prefix,
            priority=turn.priority,
            follows=index,
        )
        return self._created(arrival, _Turn(ended.session, ended.number + 1))

    def _created(self, arrival: Arrival, following: _Turn) -> Arrival:
        """Remember what follows a request; requests are numbered as created."""
        self._turns[self._num_created] = following
        self._num_created += 1
        return arrival
