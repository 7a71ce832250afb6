"""What every scheduling policy answers, and what it is made of.

A policy says at one of three moments where a prompt goes next; decodes follow their prompt.

``ADMISSION``
    The whole route is fixed before the prompt leaves the coordinator.
``DEPARTURE``
    The next node is chosen when the prompt is through with a node.
``TRANSMISSION``
    The next node is chosen among the links that are free when there is one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum, StrEnum
from typing import TYPE_CHECKING, Protocol

from helixsim.placement.flow import Flow
from helixsim.placement.topology import PlacedLink, Topology
from helixsim.requests import Request

if TYPE_CHECKING:
    from random import Random


class Moment(Enum):
    """When a policy decides about the next node of a prompt."""

    ADMISSION = "admission"
    DEPARTURE = "departure"
    TRANSMISSION = "transmission"


class Rejection(StrEnum):
    """Why a request is turned away."""

    FLOW = "flow"
    """No successor on the way has any share of the flow."""
    LENGTH = "length"
    """Its prompt is longer than a batch of the nodes on the way may be."""
    KV = "kv"
    """The KV caches on the way are expected to be too full for it."""


@dataclass(frozen=True, slots=True)
class PolicyInputs:
    """What policies are made of.

    Attributes
    ----------
    topology, flow
        Nodes, links, and the maximum flow over them.
    high_water_mark
        Share of a node's KV capacity that admitted requests may be expected to fill.
    expected_output_tokens
        Output that is reserved for a request of unknown length: mean x expected ratio.
    min_flow_share
        A successor with less than this share of a node's flow is not used.
    rng
        The run's random stream.
    """

    topology: Topology
    flow: Flow
    high_water_mark: float
    expected_output_tokens: float
    min_flow_share: float
    rng: Random


class Policy(Protocol):
    """Decides about routes."""

    moment: Moment

    def link_bandwidth(self, link: PlacedLink) -> int:
        """What a link may use by itself, in whole bytes per second, fixed for the run."""
        ...

    def admit(self, request: Request) -> Rejection | None:
        """Take a request in, or say why not.

        Policies that decide at admission set its whole route; others an empty one.
        """
        ...

    def decode_dispatched(self, request: Request) -> None:
        """Take note that a decode leaves the coordinator on its request's route."""
        ...

    def finished(self, request: Request) -> None:
        """Take note that a request has ended and its KV cache is free."""
        ...

    def bottleneck_share(self) -> float | None:
        """Expected KV use of the fullest layer, 0 to 1; None if the policy keeps no count."""
        ...

    def expected_tokens(self, node: int) -> int | None:
        """KV use that is expected of a node, in tokens x layers; None if not counted."""
        ...


class DeparturePolicy(Policy, Protocol):
    """A policy that decides when a prompt leaves a node, and learns from transit times."""

    def transited(self, request: Request, now: float) -> None:
        """Take note that a request is through with the node that it came to."""
        ...

    def choose(self, machine: int, request: Request) -> PlacedLink:
        """The link that a prompt takes from here."""
        ...


class TransmissionPolicy(Policy, Protocol):
    """A policy that decides when links are free."""

    def candidates(
        self, machine: int, usable: Sequence[PlacedLink], waiting: Callable[[int], int]
    ) -> Chooser:
        """Begin one attempt to send from a machine.

        Parameters
        ----------
        machine
            Who sends.
        usable
            The links that could carry something now, in link order.
        waiting
            Number of a node -> requests that wait at its first layer.
        """
        ...


Chooser = Callable[[Request, set[int]], "PlacedLink | None"]
"""Given a prompt and the numbers of the links already taken in this attempt: its link, if any."""


class RoomCheck:
    """Which prompts can go over a link and still find a way to the end.

    A prompt that is longer than a node's batches may be can never run there; following a link
    into such a dead end would leave it stuck.
    """

    def __init__(self, topology: Topology) -> None:
        home = topology.coordinator
        best = [0] * (home + 1)
        through = [0] * len(topology.links)
        # Links go from lower to higher layers, so nodes in falling order of their end are done
        # before those that lead to them.
        for node in sorted(topology.nodes, key=lambda node: -node.end_layer):
            for link in topology.outgoing[node.index]:
                onward = 2**62 if link.target == home else best[link.target]
                through[link.index] = onward
                best[node.index] = max(best[node.index], onward)
            best[node.index] = min(best[node.index], node.capacity.max_prompt_tokens)
        for link in topology.outgoing[home]:
            through[link.index] = best[link.target]
        self.longest_prompt = tuple(through)
        """For each link, the longest prompt that can go over it and on to the end."""
        self.longest_admitted = max(
            (through[link.index] for link in topology.outgoing[home]), default=0
        )
        """The longest prompt that any route takes."""

    def fits(self, link: PlacedLink, request: Request) -> bool:
        """Whether a prompt can go over a link and on to the end."""
        return request.prompt_tokens <= self.longest_prompt[link.index]
