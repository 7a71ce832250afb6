"""What passes cost a machine at least, whatever is in them: straight lines below the step times.

A bound must hold for the best batches that a node may ever run, not for typical ones. So each
function of a pass's size is replaced by lines that lie nowhere above it: a pass of d decodes with
c tokens of context each takes at least ``a + b d + g c d`` seconds on one layer, for each line
(a, b, g). Summed over any passes, a line gives ``a`` for each pass, ``b`` for each decode and ``g``
for each token of context: batches do not matter any more.

The times come from the step timers themselves (:mod:`helixsim.physics`), asked at all sizes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import inf

import numpy as np
import numpy.typing as npt

from helixsim.cluster import Nic
from helixsim.physics.calibrated import EngineStepTimer
from helixsim.physics.paper import COPY_S_PER_BYTE
from helixsim.placement.topology import PlacedNode
from helixsim.profiles.machine import LLM, Capacity, MachineProfile
from helixsim.profiles.operators import LayerTables, OperatorTables, StageTables
from helixsim.scenario.resolved import Scenario

Curve = npt.NDArray[np.float64]
"""Seconds for 1, 2, ... tokens or decodes."""

_MOST_POINTS = 16_384
"""Sizes up to this one are all asked; beyond it, only points between which times are linear."""
_FAR = 1e7
"""Tokens of context beyond all kinks of a time."""
_BLENDS = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True, slots=True)
class Line:
    """A pass takes at least ``per_pass_s + items x per_item_s + contexts x per_context_s``."""

    per_pass_s: float
    per_item_s: float
    per_context_s: float = 0.0


@dataclass(frozen=True, slots=True)
class PassCosts:
    """What passes through one layer of a machine cost at least.

    Attributes
    ----------
    prompts
        Lines for passes of prompt tokens.
    decodes
        Lines for passes of decodes.
    any_with_decodes
        Lines for any pass with decodes, by its decodes: the same, or lower where prompts may be in
        the pass too.
    riding
        Lines without a part per pass for decodes in a pass with prompts, beyond what their token
        costs as any token of the pass; None where decodes and prompts have passes, or terms, of
        their own.
    prompt_s
        Time for each prompt of a pass, on each layer.
    copy_in_s, copy_out_s
        Time for each token that comes from, or goes to, another node.
    least_decode_s
        The shortest pass with a decode takes at least this.
    """

    prompts: tuple[Line, ...]
    decodes: tuple[Line, ...]
    any_with_decodes: tuple[Line, ...]
    riding: tuple[Line, ...] | None = None
    prompt_s: float = 0.0
    copy_in_s: float = 0.0
    copy_out_s: float = 0.0
    least_decode_s: float = 0.0


@dataclass(frozen=True, slots=True)
class PassLimits:
    """The most that one pass of a node takes; see :class:`helixsim.profiles.machine.Capacity`."""

    prompts: float
    prompt_tokens: int
    decodes: int
    decode_context: float


def lower_lines(sizes: Sequence[int], seconds: Curve, per_context_s: float = 0.0) -> list[Line]:
    """Lines below a function, through the corners of its lower convex hull, and from the origin.

    Parameters
    ----------
    sizes
        Rising sizes, at least 1; between them the function is not below its chord.
    seconds
        Its value at each of them.

    Returns
    -------
    list
        Lines whose part per pass is not negative.
    """
    corners: list[tuple[float, float]] = []
    for x, y in zip(sizes, seconds.tolist(), strict=True):
        while len(corners) > 1 and _turns_down(corners[-2], corners[-1], (x, y)):
            corners.pop()
        corners.append((float(x), y))
    steepest = min(y / x for x, y in corners)
    lines = [Line(0.0, steepest, per_context_s)]
    least = min(y for _, y in corners)
    if least > 0:
        lines.append(Line(least, 0.0, per_context_s))
    for (x0, y0), (x1, y1) in pairwise(corners):
        slope = (y1 - y0) / (x1 - x0)
        if (at_zero := y0 - slope * x0) > 0 and slope > 0:
            lines.append(Line(at_zero, slope, per_context_s))
    return lines


def _turns_down(
    first: tuple[float, float], middle: tuple[float, float], last: tuple[float, float]
) -> bool:
    """Whether the middle point lies on or above the chord of the others."""
    rise = (last[1] - first[1]) * (middle[0] - first[0])
    return (middle[1] - first[1]) * (last[0] - first[0]) >= rise


def sizes_up_to(most: int, kinks: Sequence[int]) -> list[int]:
    """All sizes to a limit, or where there are too many, as many sizes as suffice."""
    dense = list(range(1, min(most, _MOST_POINTS) + 1))
    beyond = {each for kink in kinks for each in (kink, kink + 1) if len(dense) < each < most}
    return dense + sorted(beyond | ({most} if most > len(dense) else set()))


# -- the performance models ------------------------------------------------------------------


def paper_costs(llm: LLM, profile: MachineProfile, limits: PassLimits) -> PassCosts:
    """Of ``physics: paper``: prompts and decodes of a batch cost as two passes would."""
    sizes = sizes_up_to(limits.prompt_tokens, profile.prefill.tokens)
    prompts = np.array([profile.prefill(size) for size in sizes])
    numbers = sizes_up_to(limits.decodes, profile.decode.tokens)
    decodes = np.array([profile.decode(number) for number in numbers])
    decodes[0] *= 2
    lines = tuple(lower_lines(numbers, decodes))
    return PassCosts(
        prompts=tuple(lower_lines(sizes, prompts)),
        decodes=lines,
        any_with_decodes=lines,
        copy_in_s=COPY_S_PER_BYTE * llm.activation_bytes_per_token,
        least_decode_s=float(decodes.min()),
    )


def calibrated_costs(
    scenario: Scenario, profile: MachineProfile, limits: PassLimits, *, is_mixed: bool
) -> PassCosts:
    """Of ``physics: calibrated``, from operator tables where the machine has some."""
    if profile.operators is not None:
        return _operator_costs(scenario.llm, profile.operators, limits)
    return _curve_costs(scenario, profile, limits, is_mixed=is_mixed)


def _curve_costs(
    scenario: Scenario, profile: MachineProfile, limits: PassLimits, *, is_mixed: bool
) -> PassCosts:
    llm = scenario.llm
    timer = EngineStepTimer(llm, _lone_node(llm, profile), scenario.engine)
    each_prompt_s = timer.prefill_layer_s(2, 1) - timer.prefill_layer_s(1, 1)
    sizes = sizes_up_to(limits.prompt_tokens, profile.prefill.tokens)
    prompts = np.array([timer.prefill_layer_s(1, size) - each_prompt_s for size in sizes])
    numbers = sizes_up_to(limits.decodes, profile.decode.tokens)
    alone = _context_curves(numbers, timer.decode_layer_s)
    decodes = present = _lines_of(numbers, alone)
    riding = None
    if is_mixed:
        further = _context_curves(
            numbers,
            lambda n, c: timer.mixed_layer_s(1, 1, n, c) - timer.prefill_layer_s(1, 1 + n),
        )
        riding = tuple(line for line in _lines_of(numbers, further) if not line.per_pass_s)
        beside = _beside_prompts(numbers, sizes, prompts)
        present = _lines_of(
            numbers,
            [
                (np.minimum(own, beside + more), min(slope, other))
                for (own, slope), (more, other) in zip(alone, further, strict=True)
            ],
        )
    copy_s = timer.copy_s(1)
    return PassCosts(
        prompts=tuple(lower_lines(sizes, prompts)),
        decodes=decodes,
        any_with_decodes=present,
        riding=riding,
        prompt_s=each_prompt_s,
        copy_in_s=copy_s,
        copy_out_s=copy_s,
        least_decode_s=max(line.per_pass_s for line in present),
    )


def _lines_of(numbers: Sequence[int], curves: Sequence[tuple[Curve, float]]) -> tuple[Line, ...]:
    return tuple(line for curve, slope in curves for line in lower_lines(numbers, curve, slope))


def _beside_prompts(numbers: Sequence[int], sizes: Sequence[int], prompts: Curve) -> Curve:
    """The least time of a pass of more tokens than each number of decodes; infinite for none."""
    least = np.append(np.minimum.accumulate(prompts[::-1])[::-1], inf)
    return least[np.searchsorted(np.array(sizes), np.array(numbers) + 1)]


def _context_curves(
    numbers: Sequence[int], seconds: Callable[[int, int], float]
) -> list[tuple[Curve, float]]:
    """Curves and a time for each token of context, below the time of decodes.

    The time is convex in the sum of the contexts. So it lies above its value at no context, and
    above its last slope; and above any mean of the two.
    """
    far = int(_FAR) * max(numbers)
    slope = (seconds(1, 2 * far) - seconds(1, far)) / far
    short = np.array([seconds(number, 0) for number in numbers])
    first_slope = min(slope, *(seconds(n, 1) - seconds(n, 0) for n in numbers))
    first_slope = max(0.0, first_slope * (1 - 1e-6))  # a difference of rounded numbers
    long = np.array([seconds(number, far) - slope * far for number in numbers])
    return [
        (blend * long + (1 - blend) * short, blend * slope + (1 - blend) * first_slope)
        for blend in _BLENDS
    ]


def _lone_node(llm: LLM, profile: MachineProfile) -> PlacedNode:
    """A node that holds a layer from the middle, for what a layer costs."""
    free = Nic(inf, inf)
    room = Capacity(0, 0, 0, 0, 0)
    kind = profile.machine_type
    return PlacedNode(0, kind, kind, "", free, inf, 0, llm.num_layers + 1, profile, room)


def _operator_costs(llm: LLM, tables: OperatorTables, limits: PassLimits) -> PassCosts:
    """From operator tables; of several kinds of layers, the cheapest at each point.

    Attention of prompts is left out: in a pass with decodes the tables have one time for both.
    """
    stages = [StageTables(tables, ((1.0, kind),)) for kind in tables.kinds]
    kinks = sorted(set().union(*(stage.token_points for stage in stages)))

    def layer_s(num_tokens: int) -> float:
        size = llm.activation_bytes_per_token
        return min(stage.layer_s(num_tokens, size) for stage in stages)

    sizes = sizes_up_to(limits.prompt_tokens, kinks)
    prompts = np.array([layer_s(size) for size in sizes])
    numbers = sizes_up_to(limits.decodes, kinks)
    dense = np.array([layer_s(number) for number in numbers])
    decodes: list[Line] = []
    for slope in _attention_slopes(tables, numbers):
        attention = np.array([_attention_s(tables.kinds, n, slope) for n in numbers])
        if np.isfinite(attention).all():
            decodes += lower_lines(numbers, dense + attention, slope)
    beside = np.minimum(dense, _beside_prompts(numbers, sizes, prompts))
    present = tuple(lower_lines(numbers, beside))
    return PassCosts(
        prompts=tuple(lower_lines(sizes, prompts)),
        decodes=tuple(decodes),
        any_with_decodes=present,
        riding=(Line(0.0, 0.0),),
        least_decode_s=max(line.per_pass_s for line in present),
    )


def _attention_slopes(tables: OperatorTables, numbers: Sequence[int]) -> list[float]:
    """Candidate costs of a token of context: any is right, the best one is taken."""
    found = {0.0}
    for kind in tables.kinds:
        contexts, most = kind.attention.decode_context, numbers[-1]
        times = [kind.attention(0, 0, most, context) for context in contexts]
        for index in range(1, len(contexts)):
            rise = (times[index] - times[index - 1]) / (contexts[index] - contexts[index - 1])
            found.add(max(0.0, rise / most))
    return sorted(found)


def _attention_s(kinds: Sequence[LayerTables], number: int, slope: float) -> float:
    """The least that attention of some decodes exceeds a line in their contexts by."""
    least = inf
    for kind in kinds:
        contexts = kind.attention.decode_context
        last = contexts[-1]
        values = [
            kind.attention(0, 0, number, context) - slope * number * context
            for context in (0, *contexts)
        ]
        beyond = kind.attention(0, 0, number, 2 * last) - kind.attention(0, 0, number, last)
        if beyond < slope * number * last * (1 - 1e-12):
            return -inf  # it falls below every line with this slope
        least = min(least, *values)
    return least
