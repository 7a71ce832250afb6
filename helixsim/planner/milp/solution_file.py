"""Raw solutions in files: one variable and its value a line.

What other solvers write of the program's model file is read too: comments begin with ``#``;
CBC writes a headline and then number, name, value and reduced cost, and leaves zeros out.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from pathlib import Path

from helixsim.errors import ScenarioError
from helixsim.planner.milp.inputs import MilpInputs, milp_inputs
from helixsim.planner.milp.values import ranges_of, used_nodes
from helixsim.planner.problem import PlanningProblem

_MAX_BYTES = 100_000_000


def solution_text(values: Mapping[str, float], tokens_per_s: float) -> str:
    """The whole file, all numbers exact."""
    lines = [
        "# Placement of layers; see helixsim.planner.milp.formulation for the names",
        f"# Objective value = {tokens_per_s!r}",
        *(f"{name} {value!r}" for name, value in values.items()),
    ]
    return "\n".join(lines) + "\n"


def recover(problem: PlanningProblem, file: Path) -> dict[int, tuple[int, int]]:
    """Take a placement from a raw solution of the program.

    Parameters
    ----------
    problem
        What the program was stated for: nodes go by their numbers.
    file
        Variables and values; of any solver, as far as it writes names and values.

    Returns
    -------
    dict
        Node -> ``[start, end)``. Nodes without flow are left out, if the file has flows.

    Raises
    ------
    ScenarioError
        If the file cannot be used; it names the line, where there is one to blame.
    """
    inputs = milp_inputs(problem)
    values = _checked_values(inputs, file)
    try:
        ranges = ranges_of(inputs, values)
    except KeyError as error:
        node = error.args[0]
        raise ScenarioError(
            f"nothing says how many layers node {node} ({problem.names[node]}) holds: no "
            f"hold_{node}_... is 1",
            file=file,
        ) from None
    for node, (_, end) in ranges.items():
        if end > problem.num_layers:
            raise ScenarioError(
                f"node {node} ({problem.names[node]}) ends with layer {end}, but "
                f"{problem.llm.name} has {problem.num_layers}; is this of another LLM?",
                file=file,
            )
    used = used_nodes(inputs, values)
    found = {node: span for node, span in ranges.items() if node in used} if used else ranges
    if problem.value(found) <= 0:
        raise ScenarioError("no request can pass through this placement", file=file)
    return found


def _checked_values(inputs: MilpInputs, file: Path) -> dict[str, float]:
    """Values of all variables; those that say where layers are must be what they may be."""
    values: dict[str, float] = {}
    for number, line in enumerate(_lines(file), start=1):
        where = f"line {number}"
        words = line.split("#")[0].replace("**", " ").split()
        if not words or (number == 1 and len(words) != 2):
            continue  # CBC's headline
        if len(words) not in (2, 4):
            raise ScenarioError(f"'{_short(line)}' is no name and value", file=file, where=where)
        name, text = words if len(words) == 2 else words[1:3]
        value = _value(text)
        if value is None:
            raise ScenarioError(f"'{_short(text)}' is no number", file=file, where=where)
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
            raise ScenarioError("is too large for a solution of this program", file=file)
        return file.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise ScenarioError("is no text", file=file) from None
    except OSError as error:
        raise ScenarioError(f"cannot be read: {error.strerror or error}", file=file) from None


def _value(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if isfinite(value) else None


def _mistake(inputs: MilpInputs, name: str, value: float) -> str | None:
    """What is wrong with the value of a variable that says where layers are."""
    kind, *numbers = name.split("_")
    if kind not in ("start", "hold"):
        return None
    expected = 1 if kind == "start" else 2
    if len(numbers) != expected or not all(n.isascii() and n.isdigit() for n in numbers):
        return "is no variable of the program"
    node = int(numbers[0])
    if node >= inputs.num_nodes:
        return f"is of a node that this cluster of {inputs.num_nodes} does not have"
    if abs(value - round(value)) > 1e-4:
        return f"must be whole, not {value}"
    if kind == "start":
        last = inputs.num_layers - 1
        is_right = 0 <= round(value) <= last
        return None if is_right else f"must be a layer from 0 to {last}, not {value:g}"
    return _hold_mistake(inputs, node, int(numbers[1]), round(value))


def _hold_mistake(inputs: MilpInputs, node: int, num_layers: int, value: int) -> str | None:
    if value not in (0, 1):
        return f"must be 0 or 1, not {value}"
    if value and not 1 <= num_layers <= inputs.max_layers(node):
        return f"is 1, but this node may hold {inputs.max_layers(node)} layers at most"
    return None


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."
