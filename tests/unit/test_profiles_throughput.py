import csv
from dataclasses import replace

import pytest

from helixsim.errors import PlacementError, ScenarioError
from helixsim.profiles.library import load_llm, load_machine_type, shipped_llms
from helixsim.profiles.throughput import estimate_throughput

MIXES = {
    "single24": {"A100": 4, "L4": 8, "T4": 12},
    "het42": {"A100": 4, "V100": 6, "L4": 8, "L4x2": 4, "T4": 10, "T4x2": 6, "T4x4": 4},
    "a100x4": {"A100": 4},
    "l4x8": {"L4": 8},
    "t4x12": {"T4": 12},
}


def table(llm, mix, **profiles):
    shipped = {name: load_machine_type(name).profiles[llm] for name in mix}
    return estimate_throughput(load_llm(llm), shipped | profiles, mix)


@pytest.mark.reference
def test_every_published_figure_is_bit_identical(reference):
    tables = {(llm, mix): table(llm, MIXES[mix]) for llm in shipped_llms() for mix in MIXES}
    with (reference / "typical_throughput.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 296
    for row in rows:
        published = (
            float(row["prompt_typical_requests"]),
            int(row["prompt_typical_tokens"]),
            int(row["decode_typical_tokens"]),
            float(row["tokens_per_s"]),
        )
        estimates = tables[row["model"], row["machine_mix"]].estimates[row["machine"]]
        estimate = estimates[int(row["layers"])]
        ours = (
            estimate.requests,
            estimate.prompt_tokens,
            estimate.decode_tokens,
            estimate.tokens_per_s,
        )
        assert ours == published, row


@pytest.mark.parametrize("llm", shipped_llms())
@pytest.mark.parametrize("mix", MIXES.values(), ids=MIXES)
def test_every_layer_count_with_a_capacity_has_a_throughput(llm, mix):
    found = table(llm, mix)
    for machine_type in mix:
        capacities = load_machine_type(machine_type).profiles[llm].capacities
        assert list(found.estimates[machine_type]) == list(capacities)
        assert all(found.tokens_per_s(machine_type, count) > 0 for count in capacities)


def test_the_table_says_what_it_does_not_hold():
    found = table("llama2-70b", {"L4": 8})
    with pytest.raises(PlacementError, match="'A100' was not estimated, only that of L4"):
        found.tokens_per_s("A100", 1)
    with pytest.raises(PlacementError, match="'L4' has no capacity for 8 layers of llama2-70b"):
        found.tokens_per_s("L4", 8)


def test_only_proportions_of_the_start_performance_matter():
    mix = {"A100": 4, "T4": 12}
    doubled = {}
    for name in mix:
        profile = load_machine_type(name).profiles["llama2-70b"]
        hints = replace(profile.hints, start_performance=2 * profile.hints.start_performance)
        doubled[name] = replace(profile, hints=hints)
    assert table("llama2-70b", mix, **doubled) == table("llama2-70b", mix)


def with_kv(profile, tokens_per_layer):
    return replace(
        profile,
        capacities={
            count: replace(capacity, kv_token_layers=tokens_per_layer * count)
            for count, capacity in profile.capacities.items()
        },
    )


def test_a_tiny_kv_cache_has_a_finite_throughput():
    profile = load_machine_type("L4").profiles["llama2-70b"]
    found = table("llama2-70b", {"L4": 80}, L4=with_kv(profile, 160))
    assert found.estimates["L4"][1].prompt_tokens == 0
    assert 0 < found.tokens_per_s("L4", 1) < 990 / profile.prefill(750)


def test_no_kv_cache_is_refused():
    profile = load_machine_type("L4").profiles["llama2-70b"]
    with pytest.raises(ScenarioError, match="'L4' has no KV cache left for requests"):
        table("llama2-70b", {"L4": 80}, L4=with_kv(profile, 1))


def test_a_machine_that_holds_the_whole_llm_works_on_whole_requests():
    llm = replace(load_llm("llama2-70b"), num_layers=1)
    profile = load_machine_type("A100").profiles["llama2-70b"]
    estimate = estimate_throughput(llm, {"A100": profile}, {"A100": 1}).estimates["A100"]
    assert list(estimate) == [1]
    assert (estimate[1].requests, estimate[1].prompt_tokens) == (1, 750)
    assert estimate[1].tokens_per_s == 990 / (profile.prefill(750) + profile.decode(240))


def test_a_type_without_profile_is_refused():
    with pytest.raises(ScenarioError, match="'H100' has no profile for llama2-70b"):
        estimate_throughput(load_llm("llama2-70b"), {}, {"H100": 1})


def test_a_type_without_machines_is_refused():
    with pytest.raises(ScenarioError, match="0 machines of type 'L4'"):
        table("llama2-70b", {"L4": 0})
