"""Quiet, repeatable models of mixed-integer linear programs.

CBC prints three lines for every model without integers, whatever it is told; so a linear
program here has one integer that is fixed (:func:`add_silencer`). Closing the process's output
while it solves would swallow what other threads print, a progress display for one.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from helixsim.errors import ScenarioError

if TYPE_CHECKING:
    import mip

SOLVERS = {
    "CBC": "it comes with mip: reinstall mip and cbcbox",
    "HIGHS": "run: pip install highsbox",
    "GUROBI": "install it with its licence, and set GUROBI_HOME",
}
"""What python-mip can solve with -> what to do where it is not installed."""

MAXIMIZE, MINIMIZE = "MAX", "MIN"


def new_model(sense: str, solver: str, seed: int = 0) -> mip.Model:
    """Make an empty model that prints nothing, works on one core, and repeats its result.

    Parameters
    ----------
    sense
        `MAXIMIZE` or `MINIMIZE`.
    solver
        One of `SOLVERS`, in any case.
    seed
        Of what the solver draws at random.

    Raises
    ------
    ScenarioError
        If there is no such solver, or it is not installed.
    """
    # Loading python-mip and a solver's library takes a while that most commands do not need.
    import mip

    name = solver.upper()
    if name not in SOLVERS:
        raise ScenarioError(f"there is no solver '{solver}'; there are {', '.join(SOLVERS)}")
    # python-mip logs a missing library as an error and then fails with whatever comes next,
    # mostly a NameError.
    log = logging.getLogger(f"mip.{name.lower()}")
    was_disabled, log.disabled = log.disabled, True
    try:
        model = mip.Model(sense=sense, solver_name=name)
    except (FileNotFoundError, ImportError, NameError, OSError) as error:
        raise ScenarioError(f"the solver {name} is not installed; {SOLVERS[name]}") from error
    except mip.exceptions.MipBaseException as error:
        raise ScenarioError(f"the solver {name} does not start: {error}") from error
    finally:
        log.disabled = was_disabled
    model.verbose = 0
    model.threads = 1
    model.seed = seed
    model.max_mip_gap = 0.0
    return model


def add_silencer(model: mip.Model) -> None:
    """Add an integer fixed to 0, which makes CBC solve a linear program without a word.

    Its constraints then have no dual prices; state the dual program where those are wanted.
    """
    model.add_var(var_type="I", lb=0, ub=0)


def check_solver(solver: str) -> None:
    """See that a solver is there, before it is needed.

    Raises
    ------
    ScenarioError
        As :func:`new_model`.
    """
    new_model(MINIMIZE, solver)
