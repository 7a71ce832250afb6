"""How long steps take on a node, as the scenario's performance model times them.

The surrogate asks the performance model itself, so that it knows its physics: profiles of the
paper, engine files, operator tables, and performance models of others.
"""

from __future__ import annotations

from dataclasses import replace

from helixsim.control.control_plane import node_scheduler_name, performance_model
from helixsim.physics.performance_model import StepTimer
from helixsim.placement.topology import PlacedNode, node_with_layers
from helixsim.planner.problem import PlanningProblem
from helixsim.requests import Request
from helixsim.scenario.resolved import Scenario
from helixsim.steps import Batch, Step


class NodeTimer:
    """Times steps of prompts or of decodes alone on one node.

    Parameters
    ----------
    timer, node
        The step timer of the node, and the node.
    decode
        A mean request in a decode.
    is_charged
        Whether what reaches the node counts as hidden states to copy.
    """

    def __init__(
        self, timer: StepTimer, node: PlacedNode, decode: Request, *, is_charged: bool
    ) -> None:
        self._timer = timer
        self._bounds = (node.start_layer, node.end_layer)
        self._decode = decode
        self._is_charged = is_charged

    def prompt_s(self, prompt: Request) -> float:
        """Seconds of a prompt."""
        tokens = prompt.num_new_tokens
        return self._seconds(Batch([prompt], 1, tokens), tokens)

    def decodes_s(self, count: int) -> float:
        """Seconds of a batch of decodes."""
        return self._seconds(Batch([self._decode] * count, 0, 0), count)

    def _seconds(self, batch: Batch, tokens: int) -> float:
        received = tokens if self._is_charged else 0
        ends, _ = self._timer.time_step(Step([batch], self._bounds, received_tokens=received), 0.0)
        return ends[-1]


class DecodeTimes:
    """Times of steps of decodes on one node.

    Attributes
    ----------
    most
        Most decodes in a batch.
    """

    __slots__ = ("_known", "_time", "most")

    def __init__(self, timer: NodeTimer, most: int) -> None:
        self.most = most
        self._time = timer
        self._known: dict[int, float] = {}

    def __call__(self, num_decodes: int) -> float:
        """Seconds of a step of this number of decodes, at least one."""
        found = self._known.get(num_decodes)
        if found is None:
            found = self._known[num_decodes] = self._time.decodes_s(num_decodes)
        return found


class StepTimes:
    """Times of prompts and decodes on nodes, by their kind and the layers that they hold.

    Parameters
    ----------
    scenario, problem
        The scenario, whose performance model is asked, and its planning problem.
    prompt_tokens, output_tokens
        Lengths of the mean request.
    """

    def __init__(
        self,
        scenario: Scenario,
        problem: PlanningProblem,
        prompt_tokens: float,
        output_tokens: float,
    ) -> None:
        self._scenario = scenario
        self._problem = problem
        self._performance = performance_model(scenario)
        # The paper's scheduler charges token ids from the coordinator as hidden states.
        self._charges_ids = node_scheduler_name(scenario) == "paper"
        self._prompt = _mean_request(prompt_tokens, output_tokens)
        self._decode = _mean_request(prompt_tokens, output_tokens)
        self._decode.is_prefill = False
        self._decode.num_new_tokens = 1
        self._decode.num_computed_tokens = round(prompt_tokens + output_tokens / 2)
        self._profiles = scenario.profiles()
        self._has_equal_layers = scenario.llm.has_equal_layers and not any(
            profile.operators is not None and profile.operators.kind_of_layer
            for profile in self._profiles.values()
        )
        self._known: dict[tuple[object, ...], tuple[float, DecodeTimes, float]] = {}

    def of(self, kind: int, start: int, end: int) -> tuple[float, DecodeTimes, float]:
        """Times on a node of a kind with the layers ``[start, end)``.

        Returns
        -------
        tuple
            Seconds of a mean prompt, times of decodes, tokens of KV cache on each layer.
        """
        key: tuple[object, ...] = (kind, start, end)
        if self._has_equal_layers:
            key = (kind, end - start, start == 0, end == self._problem.num_layers)
        found = self._known.get(key)
        if found is None:
            node = self._placed(kind, start, end)
            timer = NodeTimer(
                self._performance.step_timer(node),
                node,
                self._decode,
                is_charged=start > 0 or self._charges_ids,
            )
            found = self._known[key] = (
                timer.prompt_s(self._prompt),
                DecodeTimes(timer, node.capacity.max_decode_tokens),
                node.capacity.kv_token_layers / (end - start),
            )
        return found

    def _placed(self, kind: int, start: int, end: int) -> PlacedNode:
        node = self._problem.cluster.nodes[self._problem.kind_of.index(kind)]
        placed = node_with_layers(node, self._profiles[node.machine_type], (start, end), index=0)
        kv_tokens = self._scenario.engine.kv_tokens
        if kv_tokens is None:
            return placed
        capacity = replace(placed.capacity, kv_token_layers=kv_tokens * (end - start))
        return replace(placed, capacity=capacity)


def _mean_request(prompt_tokens: float, output_tokens: float) -> Request:
    output = max(1, round(output_tokens))
    return Request(0, 0.0, max(1, round(prompt_tokens)), output, output)
