"""Scenarios: what holds for any network, any text and any damage."""

from __future__ import annotations

import copy
import string
import tempfile
from pathlib import Path
from typing import Any

import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from helixsim.cluster import LinkRule, RuleNetwork, Spread
from helixsim.errors import InputError
from helixsim.scenario.cluster_spec import RuleSpec
from helixsim.scenario.files import find_scenario
from helixsim.scenario.load import resolve_scenario
from helixsim.scenario.overrides import apply_overrides
from helixsim.scenario.plain import rule_data
from helixsim.yaml_files import parse_yaml, yaml_text

QUICKSTART_FILE = find_scenario("quickstart")
QUICKSTART: dict[str, Any] = yaml.safe_load(QUICKSTART_FILE.read_text(encoding="utf-8"))

# -- networks

POSITIVE = st.floats(1e-6, 1e15)
SPREADS = st.tuples(POSITIVE, st.floats(0, 0.999)).map(lambda s: Spread(s[0], s[0] * s[1]))
RULES = st.builds(LinkRule, SPREADS, SPREADS)
NAMES = st.text(string.ascii_letters + string.digits, min_size=1, max_size=8)


@given(RULES, NAMES, NAMES, st.integers(0, 2**63))
def test_links_keep_to_their_rule_and_are_alike_both_ways(rule, one, other, seed):
    network = RuleNetwork({one: "a", other: "b"}, across=rule, within=rule, seed=seed)
    link, back = network.link(one, other), network.link(other, one)
    if one == other:
        assert link is None
        return
    assert (link.source, link.target) == (one, other)
    assert (link.bandwidth_bytes_per_s, link.latency_s) == (
        back.bandwidth_bytes_per_s,
        back.latency_s,
    )
    for value, spread in (
        (link.bandwidth_bytes_per_s, rule.bandwidth_bytes_per_s),
        (link.latency_s, rule.latency_s),
    ):
        assert spread.mean - spread.spread <= value <= spread.mean + spread.spread
        assert value > 0


@given(RULES)
def test_rules_are_written_exactly(rule):
    assert RuleSpec.model_validate(rule_data(rule)).to_rule() == rule


# -- YAML

TEXTS = st.one_of(
    st.text(max_size=20),
    st.from_regex(r"[-+]?[0-9._eE~xo:]{1,8}", fullmatch=True),
    st.sampled_from(
        ["null", "~", "yes", "no", "on", "true", "1e3", "08", "0x1", "<<", "", "2024-01-01"]
    ),
)
SCALARS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), TEXTS)
DATA = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=20,
)


@given(DATA)
def test_data_is_read_back_as_it_was_written(data):
    found = parse_yaml(yaml_text(data), "test")
    assert found == data
    assert repr(found) == repr(data)


# -- damage


def places(data: Any, place: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in nested data."""
    keys: list[Any] = []
    if isinstance(data, dict):
        keys = list(data)
    elif isinstance(data, list):
        keys = list(range(len(data)))
    return [(*place, key) for key in keys] + [
        deeper for key in keys for deeper in places(data[key], (*place, key))
    ]


PLACES = st.sampled_from(places(QUICKSTART))
VALUES = st.one_of(
    SCALARS,
    st.lists(SCALARS, max_size=3),
    st.dictionaries(st.one_of(TEXTS, st.integers()), SCALARS, max_size=3),
    st.sampled_from(["1 s", "1 GB", "1 GB/s", "a100-0", "coordinator", "../..", "quickstart.yaml"]),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(PLACES, VALUES), min_size=1, max_size=3))
def test_a_damaged_scenario_loads_or_is_refused(damage):
    document = copy.deepcopy(QUICKSTART)
    for place, value in damage:
        target: Any = document
        try:
            for step in place[:-1]:
                target = target[step]
            target[place[-1]] = value
        except (TypeError, LookupError):
            continue
    try:
        scenario = resolve_scenario(document, QUICKSTART_FILE)
    except InputError as error:
        assert str(error)
    else:
        assert len(scenario.digest) == 64


STEPS = st.sampled_from(
    [
        *sorted({str(step) for place in places(QUICKSTART) for step in place}),
        *("file", "generate", "links", "trace", "arrivals", "gamma", "cv", "0", "-1", "x", ""),
    ]
)
PATHS = st.lists(STEPS, min_size=1, max_size=4).map(".".join)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(PATHS, TEXTS), max_size=3))
def test_any_values_set_give_a_scenario_or_are_refused(values):
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "mine.yaml"
        try:
            document = apply_overrides(
                QUICKSTART, [f"{path}={value}" for path, value in values], file.parent
            )
            resolve_scenario(document, file)
        except InputError as error:
            assert str(error)
