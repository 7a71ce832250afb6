"""Which links between workers do not work: a worker reports how long each of its peers is silent.

No clock and no sockets: times are passed in, in seconds by the monotonic clock.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

Pair = tuple[int, int]
"""Numbers of the nodes at the ends of a link: source and target."""


@dataclass(slots=True)
class _Link:
    """A link whose ends are both up since `since_s`."""

    since_s: float
    is_cut: bool = False
    heard_since_s: float | None = None


class LinkWatch:
    """Decides which links are cut.

    A link is cut if its target has not heard its source for `missing_s`, and the coordinator has.
    It heals when the source has been heard again for `missing_s`.

    Parameters
    ----------
    pairs
        The links that are watched.
    missing_s
        Silence after which a link is cut.
    """

    def __init__(self, pairs: Iterable[Pair], missing_s: float) -> None:
        self._sources: dict[int, list[int]] = {}
        for source, target in pairs:
            self._sources.setdefault(target, []).append(source)
        self._missing_s = missing_s
        self._links: dict[Pair, _Link] = {}

    @property
    def cut(self) -> frozenset[Pair]:
        """The links that are cut."""
        return frozenset(pair for pair, link in self._links.items() if link.is_cut)

    def node_up(self, node: int, others: Iterable[int], now_s: float) -> None:
        """Watch the links between a node that is up now and others that are up."""
        up = {*others, node}
        for target, sources in self._sources.items():
            for source in sources:
                if node in (source, target) and {source, target} <= up:
                    self._links[source, target] = _Link(now_s)

    def node_down(self, node: int) -> None:
        """Do not watch the links of a node: what is lost with it is lost already."""
        for pair in [pair for pair in self._links if node in pair]:
            del self._links[pair]

    def report(
        self,
        target: int,
        silences: Mapping[int, float],
        unheard_s: Mapping[int, float],
        now_s: float,
    ) -> None:
        """Take a report of a node.

        Parameters
        ----------
        target
            The node.
        silences
            Number of a peer that it has heard -> for how long it is silent.
        unheard_s
            Number of a node -> for how long the coordinator has not heard it.
        now_s
            The time.
        """
        for source in self._sources.get(target, ()):
            link = self._links.get((source, target))
            if link is None:
                continue
            # The peer that was heard before may have been an earlier worker of the node.
            up_s = now_s - link.since_s
            silent_s = min(silences.get(source, up_s), up_s)
            if silent_s - unheard_s.get(source, 0.0) > self._missing_s:
                link.is_cut, link.heard_since_s = True, None
            elif silent_s > self._missing_s / 2:
                link.heard_since_s = None
            elif link.is_cut:
                if link.heard_since_s is None:
                    link.heard_since_s = now_s
                if now_s - link.heard_since_s >= self._missing_s:
                    link.is_cut, link.heard_since_s = False, None

    def excuse(self, paused_s: float, now_s: float) -> None:
        """Do not count this time, up to now: the coordinator was not running."""
        for link in self._links.values():
            link.since_s = min(link.since_s + paused_s, now_s)
