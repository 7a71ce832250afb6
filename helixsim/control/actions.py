"""What the coordinator is told, and what it answers: small frozen values.

An executor (simulated or real) hands every event to :meth:`Coordinator.handle` with its time and
carries out the :class:`Actions` that come back. It decides nothing by itself.
"""

from __future__ import annotations

from typing import NamedTuple

from helixsim.requests import Request


class RunStarted(NamedTuple):
    """The run begins: the first requests are created, their arrivals scheduled."""


class RequestArrived(NamedTuple):
    """A request reaches the coordinator at its arrival time."""

    request: Request


class PassesReturned(NamedTuple):
    """Passes are back from the last stage of their routes.

    Attributes
    ----------
    requests
        In order of their return; each still stands in the pass that returned.
    times_s
        When each returned, not decreasing.
    """

    requests: list[Request]
    times_s: list[float]


class TokensReturned(NamedTuple):
    """Tokens have reached the coordinator from nodes whose decodes go on by themselves.

    Attributes
    ----------
    requests
        In order; each has one more token, and no request is named twice.
    times_s
        When each came, not decreasing.
    """

    requests: list[Request]
    times_s: list[float]


class AnswerStopped(NamedTuple):
    """The pass that is about to return yields a stop token: it is the request's last pass."""

    request: Request


class NodeLost(NamedTuple):
    """A node, given by its number, does not work any more; what it held is gone."""

    node: int


class NodeRecovered(NamedTuple):
    """A lost node works again, with nothing in its KV cache."""

    node: int


class LinksCut(NamedTuple):
    """The links that do not work now, and no others: each is (source, target), by number."""

    links: frozenset[tuple[int, int]]


class RequestStalled(NamedTuple):
    """A pass of a request was lost in flight: the request begins anew."""

    request: Request


class RequestPreempted(NamedTuple):
    """A node scheduler took a request out because its KV blocks ran out."""

    request: Request


class RequestFailed(NamedTuple):
    """A node can never go on with a request."""

    request: Request
    reason: str


class RequestCancelled(NamedTuple):
    """The user of a request does not want its answer any more."""

    request: Request


Event = (
    RunStarted
    | RequestArrived
    | PassesReturned
    | TokensReturned
    | AnswerStopped
    | NodeLost
    | NodeRecovered
    | LinksCut
    | RequestStalled
    | RequestPreempted
    | RequestFailed
    | RequestCancelled
)
"""Everything that the coordinator can be told."""


class ScheduledArrival(NamedTuple):
    """A request that has been created and is to arrive at its `arrival_s`.

    Attributes
    ----------
    request
        Its `arrival_s` is when to report :class:`RequestArrived`.
    created_s
        When it was created, 0 for an open loop. Arrivals of the same instant are reported in
        order of creation.
    """

    request: Request
    created_s: float


class Actions(NamedTuple):
    """What an executor has to do after an event, in this order.

    Attributes
    ----------
    dropped
        Attempts that are over before their end: nodes and links drop what they have of them.
    ended
        Requests that have ended with this event: nodes release their KV blocks.
    arrivals
        New requests, to be reported when they arrive.
    admitted
        Requests among `send` that leave for the first time, or for the first time on a new route:
        the executor prepares their way.
    send
        Requests to send on their next pass: the first node of their route is next.
    ready_s
        When each of `send` is ready to leave.
    """

    send: list[Request]
    ready_s: list[float]
    admitted: list[Request]
    ended: list[Request]
    dropped: list[Request]
    arrivals: list[ScheduledArrival]


def no_actions() -> Actions:
    """Actions to be filled: nothing to do yet."""
    return Actions([], [], [], [], [], [])
