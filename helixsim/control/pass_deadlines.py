"""When a pass that has not returned counts as lost in flight.

Passes wait in queues, so a deadline is generous: a floor, and a multiple of the longer of what a
pass is expected to take and what passes have taken lately. It only has to be finite: links that
do not work are noticed sooner by other means.
"""

from __future__ import annotations

from dataclasses import dataclass

from helixsim.placement.topology import PlacedNode
from helixsim.requests import Route


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadlineSettings:
    """The arithmetic of deadlines; times in seconds of the run.

    Attributes
    ----------
    floor_s
        No pass is lost sooner.
    multiple
        Of the time that is expected or was measured.
    busy_multiple
        The deadline is this much later while a node of the route reports that requests wait.
    forget_s
        What passes have taken counts for half after this time.
    """

    floor_s: float = 30.0
    multiple: float = 10.0
    busy_multiple: float = 10.0
    forget_s: float = 120.0


def expected_pass_s(route: Route, nodes: tuple[PlacedNode, ...], num_tokens: int) -> float:
    """Time of a prefill of some tokens through the stages of a route, without waiting."""
    return sum(
        (stage.end_layer - stage.start_layer) * nodes[stage.node].profile.prefill(num_tokens)
        for stage in route.stages
    )


class PassDeadlines:
    """Keeps what passes have taken lately, and says how long one may take.

    Attributes
    ----------
    notable_s
        Shorter times need not be reported: they change nothing.
    """

    def __init__(self, settings: DeadlineSettings) -> None:
        self.notable_s = 0.0
        self._settings = settings
        self._longest_s = {True: 0.0, False: 0.0}
        self._forgot_s: float | None = None

    def took(self, seconds: float, *, is_first: bool) -> None:
        """A pass has returned after this time; `is_first` for the first token of a request."""
        self._longest_s[is_first] = max(self._longest_s[is_first], seconds)
        self.notable_s = min(self._longest_s.values())

    def forget(self, now: float) -> None:
        """Let old measurements count for less; times do not decrease."""
        if self._forgot_s is not None:
            share = 0.5 ** ((now - self._forgot_s) / self._settings.forget_s)
            self._longest_s = {key: value * share for key, value in self._longest_s.items()}
            self.notable_s = min(self._longest_s.values())
        self._forgot_s = now

    def allowed_s(
        self, expected_s: float, *, is_first: bool, is_busy: bool, num_stalls: int
    ) -> float:
        """How long a pass may take.

        Parameters
        ----------
        expected_s
            What it takes without waiting, by the profiles.
        is_first
            Whether it yields the first token of the request.
        is_busy
            Whether a node of its route reports waiting requests or a long batch.
        num_stalls
            How often the request has begun anew for this reason; each doubles the time.
        """
        settings = self._settings
        usual_s = max(expected_s, self._longest_s[is_first])
        allowed_s = settings.floor_s + settings.multiple * usual_s
        if is_busy:
            allowed_s *= settings.busy_multiple
        return float(allowed_s * 2**num_stalls)
