"""Step composition: how much of what waits a node takes into one step, and when the step begins.

A pipeline whose nodes take all that waits loses time to *head-of-line blocking*: a long prefill
holds up the decodes behind it, these pile up, run as one large step, and travel on together, so
that one stage works while the others idle. Four rules keep them apart, all from what the node sees:

- A step takes few prefill tokens, one chunk as a rule, so that no step is long. With a backlog of
  prefills it takes more: a chunk for every few that wait. So none waits for ever, and the time to
  the first token stays bounded when prompts are long.
- A step takes at most a quarter of the decodes that live on the node, so that a pile breaks up into
  groups that several stages work on at the same time; on a route of fewer than four stages, one
  group for each stage.
- Decodes and prefills run one after the other, decodes first: they do not wait for a prefill that
  would only run beside them. (Engines with mixed batches, which read the weights once for both, run
  both in one pass.)
- A step of few decodes waits for their followers. Requests that leave a node together arrive one
  behind the other; without a wait the first of them would run alone, and the others one step
  later. The wait ends when nothing has come for a moment: for a few times the usual gap between
  arrivals, and for a small share of the usual step at least.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil
from typing import Literal

from helixsim.requests import Request
from helixsim.steps import Batch

Auto = Literal["auto"]
AUTO: Auto = "auto"

_NO_LIMIT = 2**62
_MEMORY = 0.1
"""Weight of a new observation in an average."""
_QUIET_GAPS = 4
_QUIET_SHARE = 1 / 32
"""A wait ends when nothing has come for this number of gaps, and for this share of a step."""
_WAIT_SHARE = 1 / 4
"""A step waits for this share of its usual time at most."""
_EVERY = 4
"""Passes of decodes are looked at one in this number: they are alike, and there are many."""
_MOST_GROUPS = 4
_BACKLOG = 3
"""A step takes one more chunk for this number of chunks that wait."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepLimits:
    """What one step of a node may take, beside the limits of its batches.

    Attributes
    ----------
    max_prefill_tokens
        The most prefill tokens, unless a single chunk has more: ``auto`` for the tokens of a chunk,
        None for no limit.
    max_decodes
        The most decodes: ``auto`` for a number derived as the node runs, None for no limit.
    max_wait_s
        How long a step of decodes may wait for more of them, in seconds: ``auto`` for a share of
        the usual time of a step.
    """

    max_prefill_tokens: int | Auto | None = None
    max_decodes: int | Auto | None = None
    max_wait_s: float | Auto = 0.0


NO_LIMITS = StepLimits()
"""A node takes all that fits its batches, at once."""


class StepComposer:
    """The limits of a node's steps, as they follow from what the node has seen so far.

    Parameters
    ----------
    limits
        Which of them there are.
    num_stages
        Stages of a route, on average.

    Attributes
    ----------
    residents
        Requests whose prefill has been through the node and that have not ended: their decodes
        come back again and again.
    max_decodes
        The most decodes of a step.
    max_wait_s
        How long a step of decodes may wait.
    """

    __slots__ = (
        "_decodes_are_given",
        "_gap_s",
        "_max_prefill_tokens",
        "_num_groups",
        "_step_s",
        "_until_look",
        "_wait_is_given",
        "max_decodes",
        "max_wait_s",
        "residents",
    )

    def __init__(self, limits: StepLimits, num_stages: float) -> None:
        assert limits.max_prefill_tokens != AUTO, "the control plane knows the tokens of a chunk"
        self._max_prefill_tokens = limits.max_prefill_tokens or _NO_LIMIT
        self._decodes_are_given = limits.max_decodes != AUTO
        self._wait_is_given = limits.max_wait_s != AUTO
        self._num_groups = min(max(num_stages, 1.0), _MOST_GROUPS)
        self._until_look = 1
        self._step_s = 0.0
        self._gap_s = 0.0
        self.residents: dict[Request, None] = {}
        self.max_decodes = 1
        if limits.max_decodes != AUTO:
            self.max_decodes = limits.max_decodes or _NO_LIMIT
        self.max_wait_s = 0.0 if limits.max_wait_s == AUTO else limits.max_wait_s

    # -- what the node sees ----------------------------------------------------------------------

    def arrived(self, num_requests: int, span_s: float) -> None:
        """Take note of requests that came one behind the other, the last `span_s` after the first.

        Fewer than two tell nothing.
        """
        if num_requests > 1:
            gap_s = min(span_s / (num_requests - 1), self.max_wait_s)
            self._gap_s += _MEMORY * (gap_s - self._gap_s)

    def ran(self, seconds: float) -> None:
        """Take note of how long a pass of decodes took."""
        self._until_look -= 1
        if self._until_look:
            return
        self._until_look = _EVERY
        self._step_s += (_MEMORY if self._step_s else 1.0) * (seconds - self._step_s)
        if not self._wait_is_given:
            self.max_wait_s = _WAIT_SHARE * self._step_s

    @property
    def quiet_s(self) -> float:
        """A wait ends before its time when nothing has come for this long, in seconds."""
        quiet_s = max(_QUIET_GAPS * self._gap_s, _QUIET_SHARE * self._step_s)
        return min(quiet_s, self.max_wait_s)

    def through(self, batch: Batch, *, ends_llm: bool) -> Batch | None:
        """Take note of prefills that are through the node; what of the batch goes on.

        Chunks end with the last layer of the LLM, but for the last chunk of each prefill.
        """
        last = [request for request in batch.requests if request.origin is request]
        for request in last:
            if request.is_prefill:
                self.residents[request] = None
        self._count_residents()
        if not ends_llm or len(last) == len(batch.requests):
            return batch
        return Batch.of(last) if last else None

    def forget(self, request: Request) -> None:
        """Take note that a request has ended."""
        self.residents.pop(request, None)
        self._count_residents()

    def drop_unless(self, is_wanted: Callable[[Request], bool]) -> None:
        """Forget residents that are not wanted any more."""
        for request in [request for request in self.residents if not is_wanted(request)]:
            del self.residents[request]
        self._count_residents()

    def _count_residents(self) -> None:
        if not self._decodes_are_given:
            self.max_decodes = ceil(len(self.residents) / self._num_groups) or 1

    # -- what follows ------------------------------------------------------------------------------

    def prefill_tokens(self, num_chunks: int) -> int:
        """The most prefill tokens of a step where `num_chunks` chunks wait.

        A single chunk may have more.
        """
        return self._max_prefill_tokens * max(num_chunks // _BACKLOG, 1)
