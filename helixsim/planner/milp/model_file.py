"""The program as an LP or MPS file, by the file's suffix.

It is written here because CBC writes numbers with six digits only, and as a minimisation.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from helixsim.errors import InputError

if TYPE_CHECKING:
    import mip

_LINE = 200
"""Characters after which an LP line is broken; some readers refuse lines above 500."""


def check_suffix(file: Path) -> None:
    """Check that the suffix names a format.

    Raises
    ------
    InputError
        If it is neither ``.lp`` nor ``.mps``.
    """
    if file.suffix not in (".lp", ".mps"):
        raise InputError(
            f"'{file.suffix}' is not a model format; name the file .lp or .mps", file=file
        )


def model_text(model: mip.Model, file: Path) -> str:
    """The text of a model file, with exact numbers.

    Raises
    ------
    InputError
        As :func:`check_suffix`.
    """
    check_suffix(file)
    lines = _lp_lines(model) if file.suffix == ".lp" else _mps_lines(model)
    return "\n".join(lines) + "\n"


def _terms(expression: mip.LinExpr) -> list[tuple[str, float]]:
    """(name, coefficient) of every variable of an expression, in the model's order."""
    found = [(var.idx, var.name, float(c)) for var, c in expression.expr.items() if c]
    return [(name, coefficient) for _, name, coefficient in sorted(found)]


def _is_binary(var: mip.Var) -> bool:
    return bool(var.var_type != "C" and var.lb == 0 and var.ub == 1)


# -- LP ----------------------------------------------------------------------------------------


def _lp_lines(model: mip.Model) -> Iterator[str]:
    yield "\\ Placement of layers; see helixsim.planner.milp.formulation for the names"
    yield "Maximize"
    yield from _wrapped(f" flow: {_lp_sum(_terms(model.objective))}")
    yield "Subject To"
    for row in model.constrs:
        sense = {"<": "<=", ">": ">=", "=": "="}[row.expr.sense]
        yield from _wrapped(f" {row.name}: {_lp_sum(_terms(row.expr))} {sense} {_number(row.rhs)}")
    yield "Bounds"
    for var in model.vars:
        if not _is_binary(var):
            yield f" {_number(var.lb)} <= {var.name} <= {_number(var.ub)}"
    yield "Generals"
    yield from (f" {v.name}" for v in model.vars if v.var_type != "C" and not _is_binary(v))
    yield "Binaries"
    yield from (f" {var.name}" for var in model.vars if _is_binary(var))
    yield "End"


def _lp_sum(terms: Iterable[tuple[str, float]]) -> str:
    return " ".join(f"{'-' if c < 0 else '+'} {_number(abs(c))} {name}" for name, c in terms)


def _wrapped(line: str) -> Iterator[str]:
    while len(line) > _LINE:
        cut = line.rfind(" ", 0, _LINE)
        # Break before a sign, so that sign, coefficient and variable stay together.
        cut = max(line.rfind(" + ", 0, cut), line.rfind(" - ", 0, cut))
        yield line[:cut]
        line = " " + line[cut:]
    yield line


# -- MPS ---------------------------------------------------------------------------------------


def _mps_lines(model: mip.Model) -> Iterator[str]:
    rows = [(row.name, row.expr.sense, float(row.rhs), _terms(row.expr)) for row in model.constrs]
    columns: dict[str, list[tuple[str, float]]] = {var.name: [] for var in model.vars}
    for name, coefficient in _terms(model.objective):
        columns[name].append(("flow", coefficient))
    for row_name, _, _, terms in rows:
        for name, coefficient in terms:
            columns[name].append((row_name, coefficient))
    yield "NAME placement"
    yield from ("OBJSENSE", "    MAX", "ROWS", " N flow")
    yield from (f" {_MPS_SENSE[sense]} {name}" for name, sense, _, _ in rows)
    yield "COLUMNS"
    for var in model.vars:
        if var.var_type != "C":
            yield " MARKER 'MARKER' 'INTORG'"
        yield from (f" {var.name} {row} {_number(c)}" for row, c in columns[var.name])
        if var.var_type != "C":
            yield " MARKER 'MARKER' 'INTEND'"
    yield "RHS"
    yield from (f" rhs {name} {_number(rhs)}" for name, _, rhs, _ in rows if rhs)
    yield "BOUNDS"
    for var in model.vars:
        yield f" LO bounds {var.name} {_number(var.lb)}"
        if var.ub < _INFINITE:
            yield f" UP bounds {var.name} {_number(var.ub)}"
    yield "ENDATA"


_MPS_SENSE = {"<": "L", ">": "G", "=": "E"}
_INFINITE = 1e30


def _number(value: float) -> str:
    """A number with all its digits; whole numbers without a decimal point."""
    if abs(value) >= _INFINITE:
        return "inf" if value > 0 else "-inf"
    return str(int(value)) if value == int(value) else repr(float(value))
