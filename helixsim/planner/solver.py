"""Models of mixed-integer linear programs that print nothing and repeat their results.

CBC prints three lines for every model without integer variables, whatever its settings. So linear
programs here have one integer variable, which is fixed (:func:`add_silencer`). Redirecting the
process's output instead would also suppress the output of other threads, such as a progress bar.
"""

from __future__ import annotations

import gc
import logging
from functools import cache
from typing import TYPE_CHECKING

from helixsim.errors import ScenarioError

if TYPE_CHECKING:
    import mip

SOLVERS = {
    "CBC": "it comes with mip: reinstall mip and cbcbox",
    "HIGHS": "run: pip install highsbox",
    "GUROBI": "install it with its licence, and set GUROBI_HOME",
}
"""Back ends of python-mip -> how to install them."""

MAXIMIZE, MINIMIZE = "MAX", "MIN"


def new_model(sense: str, solver: str, seed: int = 0) -> mip.Model:
    """Make an empty model that prints nothing, runs on one core, and repeats its result.

    Parameters
    ----------
    sense
        `MAXIMIZE` or `MINIMIZE`.
    solver
        One of `SOLVERS`, in any case.
    seed
        Seed of the solver's random numbers.

    Raises
    ------
    ScenarioError
        If the solver is unknown or not installed.
    """
    # Importing python-mip and a solver's library is slow, and most commands need neither.
    import mip

    name = solver.upper()
    if name not in SOLVERS:
        raise ScenarioError(f"unknown solver '{solver}'; choose one of {', '.join(SOLVERS)}")
    # python-mip logs a missing library as an error and then fails with an unrelated exception,
    # mostly a NameError.
    log = logging.getLogger(f"mip.{name.lower()}")
    was_disabled, log.disabled = log.disabled, True
    try:
        _warm_up(name)
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


@cache
def _warm_up(name: str) -> None:
    """Solve a tiny program, while no garbage is collected.

    A model that the garbage collector deletes calls the solver's library. The first use of each of
    the library's types and functions holds a lock. If garbage were collected then, the process
    would wait for itself for ever.
    """
    import mip

    was_enabled = gc.isenabled()
    gc.disable()
    try:
        model = mip.Model(sense=MAXIMIZE, solver_name=name)
        model.verbose = 0
        model.threads = 1
        number = model.add_var(var_type="I", lb=0, ub=2, obj=1.0)
        model.add_constr(number <= 1)
        model.optimize(max_seconds=1.0, max_nodes=1)
        del model, number
        gc.collect()
    finally:
        if was_enabled:
            gc.enable()


def add_silencer(model: mip.Model) -> None:
    """Add an integer variable fixed to 0, so that CBC solves a linear program without output.

    The constraints then have no dual prices; state the dual program where these are needed.
    """
    model.add_var(var_type="I", lb=0, ub=0)


def check_solver(solver: str) -> None:
    """Check that a solver is installed.

    Raises
    ------
    ScenarioError
        As :func:`new_model`.
    """
    new_model(MINIMIZE, solver)
