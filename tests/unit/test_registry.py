"""Names of what users can plug in: where they are looked for, and what is said if they are not."""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint

import pytest

from helixsim import registry
from helixsim.control.node_schedulers import NODE_SCHEDULERS
from helixsim.control.routing import POLICIES
from helixsim.errors import InputError
from helixsim.physics.performance_model import PERFORMANCE_MODELS
from helixsim.registry import Registry, UnknownNameError, register_all, registered_here


@pytest.fixture(autouse=True)
def only_for_this_test(monkeypatch):
    """No registry, path or module stays behind."""
    monkeypatch.setattr(registry, "_registries", dict(registry._registries))
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    sys.modules.pop("own_kinds", None)


@pytest.fixture
def offered(monkeypatch):
    """Entry points of a package that is said to be installed."""
    offered = []
    monkeypatch.setattr(
        registry,
        "entry_points",
        lambda group: [entry for entry in offered if entry.group == group],
    )
    return offered


@pytest.fixture
def kinds(offered):
    return Registry("kind of thing", "test.kinds", {"pure": "math:sqrt", "odd": "math:no_such"})


def test_one_that_ships_is_imported_when_it_is_asked_for(kinds):
    from math import sqrt

    assert kinds.get("pure") is sqrt
    kinds.check("odd")  # it ships: that is enough, without an import


def test_one_that_is_registered(kinds):
    made = object()
    kinds.register("mine", made)
    assert kinds.get("mine") is made
    kinds.check("mine")
    other = object()
    kinds.register("mine", other)  # the later one stands
    assert kinds.get("mine") is other


@pytest.mark.parametrize("name", ["", "with space", "-dash", "x" * 65, "a:b", "ä"])
def test_names_are_made_of_plain_characters(kinds, name):
    with pytest.raises(InputError, match="is no name for a kind of thing: use letters, digits"):
        kinds.register(name, object())


def test_names_that_ship_are_taken(kinds):
    with pytest.raises(InputError, match="the kind of thing 'pure' ships with helixsim"):
        kinds.register("pure", object())


def test_one_of_an_installed_package(kinds, offered):
    from math import floor

    offered.append(EntryPoint("rounded", "math:floor", "test.kinds"))
    offered.append(EntryPoint("other", "math:ceil", "test.others"))
    assert kinds.get("rounded") is floor
    assert kinds.names() == ("pure", "odd", "rounded")


def test_what_is_registered_goes_before_what_is_installed_and_what_ships_before_that(
    kinds, offered
):
    from math import sqrt

    offered.append(EntryPoint("twice", "math:floor", "test.kinds"))
    offered.append(EntryPoint("pure", "math:floor", "test.kinds"))
    made = object()
    kinds.register("twice", made)
    assert kinds.get("twice") is made
    assert kinds.get("pure") is sqrt
    assert kinds.names() == ("pure", "odd", "twice")


def test_one_from_a_file_in_the_current_directory(kinds, tmp_path, monkeypatch):
    (tmp_path / "own_kinds.py").write_text("class Mine:\n    pass\n")
    with pytest.raises(UnknownNameError, match="cannot be imported: No module named 'own_kinds'"):
        kinds.get("own_kinds:Mine")
    monkeypatch.chdir(tmp_path)
    assert kinds.get("own_kinds:Mine").__name__ == "Mine"
    assert kinds.names() == ("pure", "odd")
    with pytest.raises(UnknownNameError, match="'own_kinds' has no attribute 'Yours'"):
        kinds.get("own_kinds:Yours")


@pytest.mark.parametrize(
    ("module", "complaint"),
    [
        ("import no_such_module", r"No module named 'no_such_module' \(.*own_kinds.py, line 1\)"),
        ("\nx = 1 / 0", r"ZeroDivisionError: division by zero \(.*own_kinds.py, line 2\)"),
        ("def Mine(:", r"invalid syntax \(own_kinds.py, line 1\)"),
        ("from math import no", r"cannot import name 'no' from 'math' .*own_kinds.py, line 1\)"),
        ("import sys\nsys.path.nothing", r"AttributeError: .*own_kinds.py, line 2\)"),
    ],
)
def test_whatever_goes_wrong_at_an_import_is_one_error_with_its_line(
    kinds, tmp_path, monkeypatch, module, complaint
):
    (tmp_path / "own_kinds.py").write_text(module + "\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UnknownNameError, match=complaint):
        kinds.get("own_kinds:Mine")


def test_a_missing_package_of_one_that_ships_is_told_apart(offered, tmp_path, monkeypatch):
    """`make_engine` says which extra to install."""
    (tmp_path / "own_kinds.py").write_text("import no_such_module_at_all\n")
    monkeypatch.syspath_prepend(tmp_path)
    kinds = Registry("kind of thing", "test.kinds", {"shipped": "own_kinds:Mine"})
    with pytest.raises(ModuleNotFoundError, match="no_such_module_at_all"):
        kinds.get("shipped")


@pytest.mark.parametrize(
    ("path", "complaint"),
    [
        ("math:pi", "the routing policy 'math:pi' is neither a class nor a function"),
        ("math:sqrt", "the routing policy 'math:sqrt' has no routing_point, needs_transits"),
    ],
)
def test_what_cannot_be_such_an_extension_is_refused(path, complaint):
    with pytest.raises(UnknownNameError, match=complaint):
        POLICIES.check(path)
    value = POLICIES.__class__("x", "test.x", {}).get(path)
    with pytest.raises(InputError, match=complaint.replace(path, "mine")):
        POLICIES.register("mine", value)
    assert "mine" not in POLICIES.names()


@pytest.mark.parametrize("body", ["import sys\nsys.exit(0)", "raise SystemExit"])
def test_a_module_that_ends_the_process_is_an_error(kinds, tmp_path, monkeypatch, body):
    (tmp_path / "own_kinds.py").write_text(body + "\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UnknownNameError, match="cannot be imported: SystemExit"):
        kinds.get("own_kinds:Mine")


def test_the_line_is_that_of_the_user_not_of_a_library(kinds, tmp_path, monkeypatch):
    (tmp_path / "own_kinds.py").write_text("import json\njson.loads('x')\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UnknownNameError, match=r"JSONDecodeError: .*own_kinds.py, line 2\)"):
        kinds.get("own_kinds:Mine")


def test_a_constructor_that_fails_is_one_error_with_its_line(kinds):
    class Mine:
        def __init__(self, inputs):
            raise ValueError(f"no\n{inputs}")

    class Empty:
        pass

    kinds.register("mine", Mine)
    kinds.register("empty", Empty)
    with pytest.raises(InputError, match=r"'mine' cannot be made: ValueError: no 3 \(.*line \d"):
        kinds.make("mine", 3)
    with pytest.raises(InputError, match=r"'empty' cannot be made: TypeError: .*no arguments"):
        kinds.make("empty", 3)
    assert kinds.make("pure", 9) == 3.0
    with pytest.raises(ValueError, match=r"math domain|nonnegative"):
        kinds.make("pure", -1)  # it ships: a fault of ours keeps its traceback


def test_an_entry_point_is_loaded_as_packages_write_it(kinds, offered):
    offered.append(EntryPoint("nested", "os:path.join [extra]", "test.kinds"))
    from os.path import join

    assert kinds.get("nested") is join


def test_a_name_that_does_not_exist(kinds, offered):
    offered.append(EntryPoint("rounded", "math:floor", "test.kinds"))
    kinds.register("mine", object())
    for look in (kinds.get, kinds.check):
        with pytest.raises(UnknownNameError) as error:
            look("pur")
        assert error.value.message == (
            "no kind of thing 'pur'; there are pure, odd, mine, rounded (searched: registered in "
            "this process, shipped with helixsim, and entry points 'test.kinds' of installed "
            "packages; name your own as module:Class)"
        )


def test_names_are_shipped_ones_in_their_order_then_others_sorted(kinds):
    for name in ("z", "a"):
        kinds.register(name, object())
    assert kinds.names() == tuple(kinds) == ("pure", "odd", "a", "z")
    assert kinds.shipped_names() == ("pure", "odd")


def test_what_is_registered_can_be_handed_to_another_process(kinds):
    made = object()
    kinds.register("mine", made)
    told = registered_here()
    assert told == {"test.kinds": {"mine": made}}
    kinds.register("later", object())
    assert told == {"test.kinds": {"mine": made}}  # a copy
    elsewhere = Registry("kind of thing", "test.kinds", {})
    register_all(told | {"test.unknown": {"x": made}})
    assert elsewhere.get("mine") is made


@pytest.mark.parametrize("shipped", [POLICIES, NODE_SCHEDULERS, PERFORMANCE_MODELS])
def test_all_that_ships_can_be_imported(shipped):
    for name in shipped.shipped_names():
        assert callable(shipped.get(name))
