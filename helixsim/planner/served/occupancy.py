"""How many requests are in execution at once, at least, where a node serves at a given rate.

A large batch costs less for each decode, but all of its decodes are in execution while it runs, and
each is another request, which holds KV cache. Let a node serve w layers x requests per second, with
D decodes each. If each pass of decodes takes at least a + b d seconds on a layer, and the node has
no more than one second a second, its passes have on average d >= w D a / (1 - w (P + D b)) decodes,
for P seconds of prefill; then by Little's law and Jensen's inequality

    w D (a + b w D a / (1 - w (P + D b)))

decodes are in execution on average. This is convex in w, so it lies above its tangents. What the KV
caches admit limits the sum over all nodes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from helixsim.planner.served.pass_costs import Line

_TANGENTS = 24
_CHECKS = 96


@dataclass(frozen=True, slots=True)
class Tangent:
    """At w layers x requests per second, at least ``slope w + at_zero`` decodes are running."""

    slope: float
    at_zero: float

    def __call__(self, rate: float) -> float:
        """The decodes in execution at a rate."""
        return self.slope * rate + self.at_zero


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of rates with the same number of further decodes in execution for each unit."""

    slope: float
    width: float


def tangents(
    lines: Iterable[Line],
    *,
    decodes: float,
    context: float,
    prefill_s: float,
    most: float,
) -> list[Tangent]:
    """Tangents of the decodes in execution on one node.

    Parameters
    ----------
    lines
        Lines below the time of any pass with decodes.
    decodes, context
        Decodes of a request, and tokens in the KV cache before each, on average.
    prefill_s
        Time of a request's prefill on one layer that no decodes share.
    most
        The highest rate of the node, layers x requests per second.
    """
    found = [Tangent(0.0, 0.0)]
    for line in lines:
        a, b = decodes * line.per_pass_s, decodes * line.per_item_s
        busy_s = prefill_s + b + decodes * line.per_context_s * context
        end = min(most, 0.999 / busy_s) if busy_s else most
        for number in range(_TANGENTS + 1):
            # Closer together where the curve bends.
            rate = end * (1 - (1 - number / _TANGENTS) ** 2)
            idle = 1 - rate * busy_s
            value = rate * (a + line.per_item_s * decodes * rate * a / idle)
            slope = a + b * a * rate * (2 - rate * busy_s) / idle**2
            found.append(Tangent(slope, value - slope * rate))
    return _upper(found, most)


def _upper(found: Sequence[Tangent], most: float) -> list[Tangent]:
    """The tangents that are the highest somewhere, by rising slope."""
    kept = {
        max(found, key=lambda tangent: tangent(most * number / _CHECKS))
        for number in range(_CHECKS + 1)
    }
    return sorted(kept, key=lambda tangent: (tangent.slope, tangent.at_zero))


def segments(found: Sequence[Tangent], most: float) -> list[Segment]:
    """The highest of the tangents as stretches of rates, up to a highest rate."""
    stretches: list[Segment] = []
    rate, current = 0.0, max(found, key=lambda tangent: (tangent.at_zero, tangent.slope))
    while rate < most:
        end, following = most, None
        for other in found:
            if other.slope > current.slope:
                meets = (current.at_zero - other.at_zero) / (other.slope - current.slope)
                if rate <= meets < end:
                    end, following = meets, other
        stretches.append(Segment(current.slope, end - rate))
        if following is None:
            break
        rate, current = end, following
    return stretches


@dataclass(frozen=True, slots=True)
class Choice:
    """A number of layers that a node may hold.

    Attributes
    ----------
    num_layers
        The number.
    room
        Decodes whose KV cache it has room for, each with one layer of all the LLM's layers.
    most
        Its highest rate, layers x requests per second.
    stretches
        The decodes in execution, by rate.
    """

    num_layers: int
    room: float
    most: float
    stretches: tuple[Segment, ...]

    def gain(self, price: float, requests_per_s: float) -> float:
        """Room and the worth of its work, less what is in execution, at the best rate.

        Each of its layers serves all requests at most.
        """
        left = min(self.most, self.num_layers * requests_per_s)
        found = self.room
        for stretch in self.stretches:
            if stretch.slope >= price or left <= 0:
                break
            found += (price - stretch.slope) * min(stretch.width, left)
            left -= stretch.width
        return found


_BISECTIONS = 20
_PRICES = 40


def most_requests(
    nodes: Sequence[tuple[int, Sequence[Choice]]], num_layers: int, each: float, most: float
) -> float:
    """The most requests per second for which all KV caches together have room.

    Nodes are to serve `num_layers` times the requests, in layers, and the decodes in execution and
    elsewhere must have room. If at some price of work all nodes together, each at its best, gain
    less than the work is worth, these cannot be served: by duality.

    Parameters
    ----------
    nodes
        Number of alike nodes, and what each may hold.
    num_layers
        Layers of the LLM.
    each
        Decodes that are elsewhere, for each request per second.
    most
        Requests per second that are not exceeded.
    """
    low, high = 0.0, most
    if not _is_refuted(nodes, num_layers, each, most):
        return most
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        if _is_refuted(nodes, num_layers, each, middle):
            high = middle
        else:
            low = middle
    return high


def _is_refuted(
    nodes: Sequence[tuple[int, Sequence[Choice]]], num_layers: int, each: float, rate: float
) -> bool:
    def slack(price: float) -> float:
        gained = sum(
            count * max(choice.gain(price, rate) for choice in choices) for count, choices in nodes
        )
        return gained - price * num_layers * rate - each * rate

    slopes = [s.slope for _, choices in nodes for c in choices for s in c.stretches]
    low, high = 0.0, 2 * max(slopes, default=0.0)
    for _ in range(_PRICES):  # it is convex in the price
        one, other = low + (high - low) / 3, high - (high - low) / 3
        first, second = slack(one), slack(other)
        if min(first, second) < 0:
            return True
        if first < second:
            high = other
        else:
            low = one
    return False
