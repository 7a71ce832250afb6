"""Step times from operator tables: what each pass costs for its chunks, decodes and contexts.

Each pass runs all of its requests together, prefills and decodes. `helixsim.profiles.operators`
has the formula. Attention is looked up for the first chunk beside all decodes, and for each further
chunk alone.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import replace

from helixsim.physics.engine import EngineCosts
from helixsim.placement.topology import PlacedNode
from helixsim.profiles.machine import LLM
from helixsim.steps import Batch, Step

_Points = tuple[float, ...]
_Line = tuple[_Points, _Points]
"""Offsets and slopes of a piecewise linear function, for each gap between its points."""


class OperatorStepTimer:
    """Times the kernels of a node's steps; a :class:`.StepTimer`.

    Costs of the host, copies and polling are not part of the tables: the performance model adds
    them.

    Parameters
    ----------
    llm, node
        What runs where; the node's profile has operator tables.
    engine
        The serving engine; it may have a measured latency of all-reduces.
    """

    poll_s = 0.0

    def __init__(self, llm: LLM, node: PlacedNode, engine: EngineCosts) -> None:
        tables = node.profile.operators
        assert tables is not None, f"{node.name} has no operator tables"
        latency_s = engine.all_reduce_latency_s
        if tables.all_reduce is not None and latency_s is not None:
            tables = replace(tables, all_reduce=replace(tables.all_reduce, latency_s=latency_s))
        self._tables = tables
        self._stage = tables.stage(node.start_layer, node.end_layer)
        self._num_layers = node.num_layers
        self._is_first = node.start_layer == 0
        self._is_last = node.end_layer == llm.num_layers
        self._bytes_per_token = llm.activation_bytes_per_token
        self._contexts = self._stage.decode_contexts
        self._skew = tables.decode_skew
        self._gap_s = tables.step_gap_s
        self._layers: dict[int, float] = {}
        self._decodes: dict[int, tuple[float, float, float, _Points, _Points]] = {}

    def time_step(self, step: Step, now: float) -> tuple[Sequence[float], float]:
        """When each pass of a step is through, and when the last layer of the last one started."""
        if len(step.passes) == 1 and not step.entry_layers:
            batch = step.passes[0]
            if batch.requests and not batch.num_prompts:  # nearly all steps
                num_decodes = len(batch.requests)
                seconds = self.decode_step_s(num_decodes, *_contexts(batch))
                once_s, last_s = self._decodes[num_decodes][:2]
                end = now + seconds
                return (end,), end - (seconds - once_s) / self._num_layers - last_s
        end, tail_s = now, 0.0
        ends = []
        for batch in step.passes:
            tail_s = 0.0
            if batch.requests:
                seconds, tail_s = self._pass_s(step, batch)
                end += seconds
            ends.append(end)
        return ends, end - tail_s

    def decodes_end(self, start: float, num_decodes: int, context_sum: int, longest: int) -> float:
        """When a step of decodes that starts then is through."""
        return start + self.decode_step_s(num_decodes, context_sum, longest)

    def decode_step_s(self, num_decodes: int, context_sum: int, longest: int) -> float:
        """How long a pass of decodes alone takes, through all layers of the node.

        Parameters
        ----------
        num_decodes
            Number of decodes, at least 1.
        context_sum, longest
            Sum of their contexts, and the longest; each is the tokens in the KV cache and the new
            token: `num_computed_tokens + 1`.
        """
        once_s, _, layer_s, offsets, slopes = self._decodes.get(num_decodes) or self._decodes_of(
            num_decodes
        )
        # As in `_decode_attention_s`; a call would take as long as all the rest.
        mean = context_sum / num_decodes
        gap = bisect_right(self._contexts, mean)
        seconds = offsets[gap] + slopes[gap] * mean
        if longest > mean:
            gap = bisect_right(self._contexts, longest)
            seconds += self._skew * (offsets[gap] + slopes[gap] * longest - seconds)
        return once_s + self._num_layers * (layer_s + seconds)

    def layer_s(self, batch: Batch) -> float:
        """How long a pass takes for one layer."""
        num_decodes = batch.num_decodes
        seconds = self._layer_s(batch.num_tokens)
        if num_decodes:
            context_sum, longest = _contexts(batch)
            mean = context_sum / num_decodes
            even_s = self._attention_s(num_decodes, mean)
            uneven_s = self._skew * (self._attention_s(num_decodes, longest) - even_s)
            if not batch.num_prompts:
                return seconds + even_s + uneven_s
            seconds += uneven_s
        else:
            mean = 0.0
        for request in batch.requests:
            if request.is_prefill:
                seconds += self._stage.attention_s(
                    request.num_new_tokens, request.num_computed_tokens, num_decodes, mean
                )
                num_decodes, mean = 0, 0.0
        return seconds

    def _pass_s(self, step: Step, batch: Batch) -> tuple[float, float]:
        """How long a pass takes, and how long from the start of its last layer."""
        last_s = self._last_s(batch)
        if not step.entry_layers:
            if not batch.num_prompts:
                seconds = self.decode_step_s(len(batch.requests), *_contexts(batch))
                layers_s = seconds - self._first_s(batch) - last_s
                return seconds, layers_s / self._num_layers + last_s
            layer_s = self.layer_s(batch)
            seconds = self._first_s(batch) + self._num_layers * layer_s + last_s
            return seconds, layer_s + last_s
        seconds, layer_s = self._gap_s, 0.0
        for start_layer, end_layer, inside in step.segments(batch):
            layer_s = self.layer_s(inside) if inside.requests else 0.0
            if inside.requests and start_layer == 0:
                seconds += self._tables.embedding(inside.num_tokens)
            seconds += (end_layer - start_layer) * layer_s
        return seconds + last_s, layer_s + last_s

    def _first_s(self, batch: Batch) -> float:
        """How long the GPU waits before a pass, and the embedding takes, on the first node."""
        if not self._is_first:
            return self._gap_s
        return self._gap_s + self._tables.embedding(batch.num_tokens)

    def _last_s(self, batch: Batch) -> float:
        """How long the final norm and the head take, on the last node."""
        if not self._is_last:
            return 0.0
        return self._tables.last_s(batch.num_tokens, len(batch.requests))

    def _layer_s(self, num_tokens: int) -> float:
        """How long a layer takes without its attention."""
        known = self._layers.get(num_tokens)
        if known is None:
            known = self._stage.layer_s(num_tokens, self._bytes_per_token)
            self._layers[num_tokens] = known
        return known

    def _attention_s(self, num_decodes: int, context: float) -> float:
        """How long the attention of a layer takes for decodes alone, all with this context."""
        _, _, _, offsets, slopes = self._decodes.get(num_decodes) or self._decodes_of(num_decodes)
        gap = bisect_right(self._contexts, context)
        return offsets[gap] + slopes[gap] * context

    def _decodes_of(self, num_decodes: int) -> tuple[float, float, float, _Points, _Points]:
        """What a number of decodes costs once, of that at the end, per layer, and by context."""
        once_s, last_s = self._gap_s, 0.0
        if self._is_first:
            once_s += self._tables.embedding(num_decodes)
        if self._is_last:
            last_s = self._tables.last_s(num_decodes, num_decodes)
            once_s += last_s
        line = _line(
            self._contexts,
            [self._stage.attention_s(0, 0, num_decodes, context) for context in self._contexts],
        )
        known = (once_s, last_s, self._layer_s(num_decodes), *line)
        self._decodes[num_decodes] = known
        return known


def _contexts(batch: Batch) -> tuple[int, int]:
    """Sum and maximum of the contexts of the decodes, each with its new token."""
    if batch.num_prompts:
        known = [r.num_computed_tokens + 1 for r in batch.requests if not r.is_prefill]
    else:
        known = [request.num_computed_tokens + 1 for request in batch.requests]
    return sum(known), max(known)


def _line(points: Sequence[int], values: Sequence[float]) -> _Line:
    """The piecewise linear function through points, as its offset and slope in each gap.

    It is constant before the first point. Beyond the last point, it goes on as before, unless it
    falls there.
    """
    offsets, slopes = [values[0]], [0.0]
    for index in range(1, len(points)):
        slope = (values[index] - values[index - 1]) / (points[index] - points[index - 1])
        slopes.append(slope)
        offsets.append(values[index - 1] - slope * points[index - 1])
    slopes.append(max(slopes[-1], 0.0))
    offsets.append(values[-1] - slopes[-1] * points[-1])
    return tuple(offsets), tuple(slopes)
