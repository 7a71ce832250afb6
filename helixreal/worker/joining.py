"""When a worker says hello: at first, when its coordinator has fallen silent, when it is told to.

No clock and no sockets: times are passed in, in seconds by the monotonic clock.
"""

from __future__ import annotations

from collections.abc import Callable

_FIRST_HELLO_S = 0.5
_LONGEST_HELLO_S = 10.0
_GROWTH = 1.5
PAUSE_SHARE = 1 / 3
"""A process whose loop has not run for this share of the silence that matters was paused."""


class Joining:
    """Says when the next hello is due, and whether the coordinator is heard.

    Parameters
    ----------
    new_incarnation
        Makes a value that no other worker has.
    give_up_after_s
        Silence of the coordinator after which the worker gives up.
    now_s
        The time of the start.

    Attributes
    ----------
    offered
        The incarnation of the current hellos; an assignment is accepted for this one only.
    missing_s
        Silence after which the coordinator counts as lost.
    """

    def __init__(
        self, new_incarnation: Callable[[], str], give_up_after_s: float, now_s: float
    ) -> None:
        self._new_incarnation = new_incarnation
        self._give_up_after_s = give_up_after_s
        self._heard_s = self._last_s = now_s
        self._is_searching = False
        self._next_hello_s = 0.0
        self._hello_s = _FIRST_HELLO_S
        self._is_adopted = False
        self.offered = new_incarnation()
        self.missing_s = float("inf")
        self.search(now_s)

    @property
    def is_searching(self) -> bool:
        """Whether the worker says hello."""
        return self._is_searching

    def search(self, now_s: float) -> None:
        """Begin to say hello, at once.

        The incarnation is a new one if the last was adopted: an assignment that answers an
        earlier hello is as good as one that answers the last.
        """
        self._is_searching = True
        self._next_hello_s = now_s
        self._hello_s = _FIRST_HELLO_S
        if self._is_adopted:
            self._is_adopted = False
            self.offered = self._new_incarnation()

    def adopted(self, now_s: float) -> None:
        """The coordinator has answered with an assignment."""
        self._is_adopted = True
        self.heard(now_s)

    def heard(self, now_s: float) -> None:
        """The coordinator has been heard: all is as it was, if nothing else was said."""
        self._heard_s = now_s
        self._is_searching = False

    def unheard_s(self, now_s: float) -> float:
        """Time since the coordinator was heard."""
        return max(now_s - self._heard_s, 0.0)

    def pause_s(self, now_s: float) -> float:
        """For how long this process was paused since the last call; that time is not silence."""
        gap_s, self._last_s = now_s - self._last_s, now_s
        if gap_s <= self.missing_s * PAUSE_SHARE:
            return 0.0
        self._heard_s = min(self._heard_s + gap_s, now_s)
        return gap_s

    def check(self, now_s: float) -> bool:
        """Take note of the time, after messages were processed; whether a search begins now."""
        if self._is_searching or self.unheard_s(now_s) <= self.missing_s:
            return False
        self.search(now_s)
        return True

    def hello_is_due(self, now_s: float) -> bool:
        """Whether to say hello now; the next one is due later each time."""
        if not self._is_searching or now_s < self._next_hello_s:
            return False
        self._next_hello_s = now_s + self._hello_s
        self._hello_s = min(self._hello_s * _GROWTH, _LONGEST_HELLO_S)
        return True

    def has_given_up(self, now_s: float) -> bool:
        """Whether the coordinator has been silent for too long."""
        return self._is_searching and self.unheard_s(now_s) > self._give_up_after_s
