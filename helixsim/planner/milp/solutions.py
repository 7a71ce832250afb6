"""Solutions of the program: values of its variables from and to placements and files.

A solution file has one variable and its value per line. Files that other solvers write for the
program's model file are read as well: comments begin with ``#``; CBC writes a header line, then
number, name, value and reduced cost per variable, and omits zeros.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from math import isfinite
from pathlib import Path

from helixsim.errors import ScenarioError
from helixsim.planner.max_flow.dinic import flow_value
from helixsim.planner.milp.formulation import existing_links, pair_name
from helixsim.planner.milp.inputs import MilpInputs, milp_inputs
from helixsim.planner.problem import PlanningProblem, Ranges, layers_connect

_NO_FLOW = 1e-6
"""Share of the total flow up to which a node counts as unused; above the solvers' tolerances."""
_MAX_BYTES = 100_000_000
"""Largest solution file that is read: far above any real one, well within memory."""


def start_values(inputs: MilpInputs, ranges: Ranges) -> dict[str, float] | None:
    """Values of all integer variables for a placement, for a solver to start from.

    CBC sets integer variables without a given value to zero, so the links' switches are given
    too. Nodes that the placement does not use get one layer. Interchangeable nodes swap their
    layers into the order that the program demands.

    Returns
    -------
    dict or None
        None if the program excludes the placement: a route exceeds the limit on stages.
    """
    layers = _in_order(inputs, _all_nodes(inputs, ranges))
    depth = route_depths(inputs, layers)
    if inputs.max_stages is not None and max(depth.values()) > inputs.max_stages:
        return None
    values: dict[str, float] = {}
    for node, (start, end) in layers.items():
        values[f"start_{node}"] = start
        for k in range(1, inputs.max_layers(node) + 1):
            values[f"hold_{node}_{k}"] = int(k == end - start)
    for source, target in existing_links(inputs):
        is_on = _is_on(inputs, layers, source, target)
        values[pair_name(inputs, "link", source, target)] = int(is_on)
        if inputs.max_stages is not None and inputs.num_nodes not in (source, target):
            values[f"apart_{source}_{target}"] = int(
                not is_on and layers[source][1] > layers[target][0]
            )
    return values


def ranges_of(inputs: MilpInputs, values: Mapping[str, float]) -> dict[int, tuple[int, int]]:
    """The layers ``[start, end)`` of every node, from values of ``start_i`` and ``hold_i_k``.

    A missing value counts as zero, as in the files of CBC.

    Raises
    ------
    KeyError
        With the number of a node for which no ``hold_i_k`` is 1.
    """
    ranges: dict[int, tuple[int, int]] = {}
    for node in range(inputs.num_nodes):
        start = round(values.get(f"start_{node}", 0.0))
        sizes = range(1, inputs.max_layers(node) + 1)
        chosen = [k for k in sizes if values.get(f"hold_{node}_{k}", 0.0) > 0.5]
        if not chosen:
            raise KeyError(node)
        ranges[node] = (start, start + chosen[0])
    return ranges


def used_nodes(inputs: MilpInputs, values: Mapping[str, float]) -> set[int]:
    """Nodes that carry more than a negligible share of the flow."""
    coordinator = inputs.num_nodes
    flow = dict.fromkeys(range(coordinator + 1), 0.0)
    for source, target in existing_links(inputs):
        flow[target] += values.get(pair_name(inputs, "flow", source, target), 0.0)
    return {node for node in range(coordinator) if flow[node] > _NO_FLOW * flow[coordinator]}


def route_depths(inputs: MilpInputs, layers: Ranges) -> dict[int, int]:
    """Node -> nodes of the longest route up to and including it that layers and links allow."""
    depth: dict[int, int] = {}
    for node in sorted(layers, key=lambda node: layers[node][1]):
        before = (
            depth[other]
            for other in depth
            if inputs.links[other][node] > 0
            and layers_connect(
                layers[other], layers[node], partial_inference=inputs.partial_inference
            )
        )
        depth[node] = 1 + max(before, default=0)
    return depth


def _all_nodes(inputs: MilpInputs, ranges: Ranges) -> dict[int, tuple[int, int]]:
    """Give each unused node one layer at which no other node ends, so that no route grows."""
    ends = {end for _, end in ranges.values()}
    last = inputs.num_layers - 1
    spare = next((start for start in range(last, -1, -1) if start not in ends), last)
    return {node: ranges.get(node, (spare, spare + 1)) for node in range(inputs.num_nodes)}


def _in_order(inputs: MilpInputs, ranges: Ranges) -> dict[int, tuple[int, int]]:
    """Sort the layers of interchangeable nodes by the nodes' numbers."""
    ordered = dict(ranges)
    if inputs.strengthen:
        for group in inputs.interchangeable:
            ordered |= dict(zip(group, sorted(ranges[node] for node in group), strict=True))
    assert all(
        ordered[one][0] <= ordered[other][0]
        for group in (inputs.interchangeable if inputs.strengthen else ())
        for one, other in pairwise(group)
    )
    return ordered


def _is_on(inputs: MilpInputs, layers: Ranges, source: int, target: int) -> bool:
    coordinator = inputs.num_nodes
    if source == coordinator:
        return layers[target][0] == 0
    if target == coordinator:
        return layers[source][1] == inputs.num_layers
    return layers_connect(
        layers[source], layers[target], partial_inference=inputs.partial_inference
    )


# -- solution files ----------------------------------------------------------------------------


def solution_text(values: Mapping[str, float], tokens_per_s: float) -> str:
    """The text of a solution file, with exact numbers."""
    lines = [
        "# Placement of layers; see helixsim.planner.milp.formulation for the names",
        f"# Objective value = {tokens_per_s!r}",
        *(f"{name} {value!r}" for name, value in values.items()),
    ]
    return "\n".join(lines) + "\n"


def recover(problem: PlanningProblem, file: Path) -> dict[int, tuple[int, int]]:
    """Read a placement from a raw solution of the program.

    Parameters
    ----------
    problem
        The problem that the program was built for: nodes are identified by their numbers.
    file
        Names and values of variables, as any solver writes them.

    Returns
    -------
    dict
        Node -> ``[start, end)``. Nodes without flow are left out if the file has flows.

    Raises
    ------
    ScenarioError
        If the file cannot be read or does not describe a placement of this problem; the message
        names the line where one is at fault.
    """
    inputs = milp_inputs(problem)
    values = _checked_values(inputs, file)
    try:
        ranges = ranges_of(inputs, values)
    except KeyError as error:
        node = error.args[0]
        raise ScenarioError(
            f"the number of layers of node {node} ({problem.names[node]}) is missing: none of the "
            f"variables hold_{node}_... is 1",
            file=file,
        ) from None
    for node, (_, end) in ranges.items():
        if end > problem.num_layers:
            raise ScenarioError(
                f"node {node} ({problem.names[node]}) ends with layer {end}, but "
                f"{problem.llm.name} has {problem.num_layers}; is the solution for another LLM?",
                file=file,
            )
    used = used_nodes(inputs, values)
    found = {node: span for node, span in ranges.items() if node in used} if used else ranges
    if flow_value(problem, found) <= 0:
        raise ScenarioError("no request can pass through this placement", file=file)
    return found


def _checked_values(inputs: MilpInputs, file: Path) -> dict[str, float]:
    """Values of all variables; the values of ``start`` and ``hold`` are checked."""
    values: dict[str, float] = {}
    for number, line in enumerate(_lines(file), start=1):
        where = f"line {number}"
        words = line.split("#")[0].replace("**", " ").split()
        if not words or (number == 1 and len(words) != 2):
            continue  # CBC's header
        if len(words) not in (2, 4):
            raise ScenarioError(
                f"'{_short(line)}' is not a name and a value", file=file, where=where
            )
        name, text = words if len(words) == 2 else words[1:3]
        value = _value(text)
        if value is None:
            raise ScenarioError(f"'{_short(text)}' is not a number", file=file, where=where)
        if name in values:
            raise ScenarioError(f"{_short(name)} has a value already", file=file, where=where)
        if (mistake := _mistake(inputs, name, value)) is not None:
            raise ScenarioError(f"{_short(name)} {mistake}", file=file, where=where)
        values[name] = value
    return values


def _lines(file: Path) -> list[str]:
    try:
        if not file.is_file():
            raise ScenarioError("there is no such file", file=file)
        if file.stat().st_size > _MAX_BYTES:
            raise ScenarioError(f"the file has more than {_MAX_BYTES:,} bytes", file=file)
        return file.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise ScenarioError("the file is not UTF-8 text", file=file) from None
    except OSError as error:
        raise ScenarioError(
            f"the file cannot be read: {error.strerror or error}", file=file
        ) from None


def _value(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if isfinite(value) else None


def _mistake(inputs: MilpInputs, name: str, value: float) -> str | None:
    """What is wrong with the value of a ``start`` or ``hold`` variable; None if it is valid."""
    kind, *numbers = name.split("_")
    if kind not in ("start", "hold"):
        return None
    expected = 1 if kind == "start" else 2
    if len(numbers) != expected or not all(n.isascii() and n.isdigit() for n in numbers):
        return "is not a variable of the program"
    node = int(numbers[0])
    if node >= inputs.num_nodes:
        return f"belongs to node {node}, but this cluster has {inputs.num_nodes} nodes"
    if abs(value - round(value)) > 1e-4:
        return f"must be a whole number, not {value}"
    if kind == "start":
        last = inputs.num_layers - 1
        is_right = 0 <= round(value) <= last
        return None if is_right else f"must be a layer from 0 to {last}, not {value:g}"
    return _hold_mistake(inputs, node, int(numbers[1]), round(value))


def _hold_mistake(inputs: MilpInputs, node: int, num_layers: int, value: int) -> str | None:
    if value not in (0, 1):
        return f"must be 0 or 1, not {value}"
    if value and not 1 <= num_layers <= inputs.max_layers(node):
        return f"is 1, but this node may hold at most {inputs.max_layers(node)} layers"
    return None


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."
