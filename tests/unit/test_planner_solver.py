"""Models for the solver: no output, repeatable results, clear errors."""

from __future__ import annotations

import mip
import pytest

from helixsim.errors import ScenarioError
from helixsim.planner import solver
from helixsim.planner.solver import MAXIMIZE, MINIMIZE, add_silencer, new_model


def knapsack(*, relaxed: bool) -> mip.Model:
    model = new_model(MAXIMIZE, "cbc", seed=3)
    if relaxed:
        add_silencer(model)
    items = [model.add_var(var_type="C" if relaxed else "I", ub=3) for _ in range(8)]
    model += mip.xsum((7 + 3 * i) * item for i, item in enumerate(items)) <= 100
    model.objective = mip.xsum((11 + 5 * i) * item for i, item in enumerate(items))
    model.optimize()
    return model


@pytest.mark.parametrize("relaxed", [False, True])
def test_it_prints_nothing(relaxed, capfd):
    model = knapsack(relaxed=relaxed)
    assert model.num_solutions
    relaxation = 3 * 46 + 16 / 25 * 41
    if relaxed:
        assert model.objective_value == pytest.approx(relaxation)
    else:
        assert relaxation - 5 < model.objective_value < relaxation
    assert capfd.readouterr() == ("", "")


def test_it_is_repeatable_and_exact():
    model = new_model(MINIMIZE, "CBC", seed=5)
    assert (model.threads, model.seed, model.max_mip_gap, model.sense) == (1, 5, 0, MINIMIZE)


def test_an_unknown_solver_is_refused():
    with pytest.raises(
        ScenarioError, match="unknown solver 'CPLEX'; choose one of CBC, HIGHS, GUROBI"
    ):
        new_model(MAXIMIZE, "CPLEX")


@pytest.mark.parametrize("error", [FileNotFoundError(), NameError("ffi"), OSError(), ImportError()])
@pytest.mark.parametrize("name", list(solver.SOLVERS))
def test_a_solver_that_is_not_installed_is_named(monkeypatch, name, error, capfd):
    def fail(**_: object) -> None:
        raise error

    monkeypatch.setattr(mip, "Model", fail)
    with pytest.raises(ScenarioError, match=f"the solver {name} is not installed; ."):
        new_model(MAXIMIZE, name)
    assert capfd.readouterr() == ("", "")
