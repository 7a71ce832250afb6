"""How many groups of requests circulate on routes of several stages."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from helixsim.requests import Request


class Groups:
    """Requests that are away, at later stages of their routes, by the step that sent them.

    A group is in flight until the first of its requests is back: the others follow at once, unless
    something holds them up, and then no group waits for them.

    Attributes
    ----------
    away
        Request -> number of its group.
    """

    def __init__(self) -> None:
        self.away: dict[Request, int] = {}
        self._sizes: dict[int, int] = {}
        self._next = 0

    def is_room_for(self, requests: Iterable[Request]) -> bool:
        """Whether another group may leave: as many are in flight as a route has stages."""
        if not self._sizes:
            return True
        stages = [len(r.route.stages) for r in requests if r.route is not None]
        return len(self._sizes) < max(stages, default=1)

    def send_away(self, requests: Sequence[Request]) -> None:
        """Count a group that leaves."""
        self._sizes[self._next] = len(requests)
        self.away.update(dict.fromkeys(requests, self._next))
        self._next += 1

    def is_back(self, request: Request) -> bool:
        """Take a request back; whether it was away."""
        group = self.away.pop(request, None)
        if group is None:
            return False
        self._sizes.pop(group, None)
        return True

    def leave(self, request: Request) -> None:
        """Take note that a request will not come back, if it is away."""
        group = self.away.pop(request, None)
        if group in self._sizes:
            self._sizes[group] -= 1
            if not self._sizes[group]:
                del self._sizes[group]

    def drop_unless(self, is_wanted: Callable[[Request], bool]) -> None:
        """Forget requests that are not wanted any more."""
        for request in [request for request in self.away if not is_wanted(request)]:
            self.leave(request)
