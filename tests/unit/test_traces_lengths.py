"""Built-in length distributions: how they draw, their limits, and how near the data they are."""

from __future__ import annotations

import random

import pytest
from tools.trace_nearness import FILES, lengths_table

from helixsim.errors import InputError
from helixsim.traces import LengthModel, length_model, length_models, lengths
from helixsim.traces.lengths import Quantiles

EVEN = Quantiles((0.0, 0.5, 1.0), (0.5, 10.5, 110.5))
TOGETHER = LengthModel("together", EVEN, EVEN, ((1, 0), (0, 1)))


def test_quantiles_are_whole_numbers_on_straight_lines():
    assert [EVEN(p) for p in (0.0, 0.049, 0.051, 0.5, 0.75, 0.999999)] == [1, 1, 2, 11, 61, 110]


def test_share_up_to_counts_whole_lengths():
    shares = [EVEN.share_up_to(n) for n in (0, 1, 1.9, 10, 60, 110, 1e9)]
    assert shares == pytest.approx([0, 0.05, 0.05, 0.5, 0.75, 1, 1])


def test_the_grid_ties_prompt_and_output():
    rng = random.Random(0)
    pairs = [TOGETHER.sample(rng) for _ in range(1000)]
    assert {(prompt > 10) == (output > 10) for prompt, output in pairs} == {True}
    assert abs(sum(prompt > 10 for prompt, _ in pairs) - 500) < 80


def test_the_same_seed_draws_the_same_lengths():
    drawn = length_model("azure-conversation").draw(5, random.Random(0))
    assert drawn == length_model("azure-conversation").draw(5, random.Random(0))
    assert drawn != length_model("azure-conversation").draw(5, random.Random(1))
    assert drawn.source == "azure-conversation"


def test_limits_leave_the_rest_of_the_distribution_as_it_is():
    limited = TOGETHER.limited(max_prompt_tokens=60, max_output_tokens=5)
    assert limited.coverage == pytest.approx(0.25)
    free, rng = random.Random(0), random.Random(0)
    kept = [p for p in (TOGETHER.sample(free) for _ in range(2000)) if p[0] <= 60 and p[1] <= 5]
    assert len(kept) > 400
    assert [limited.sample(rng) for _ in kept] == kept


def test_limits_add_up():
    limited = TOGETHER.limited(max_prompt_tokens=50).limited(max_prompt_tokens=90)
    assert limited.max_prompt_tokens == 50


@pytest.mark.parametrize("limit", [0, -5, float("nan")])
def test_limits_that_leave_too_little_are_refused(limit):
    with pytest.raises(InputError, match="together: limits of"):
        TOGETHER.limited(max_output_tokens=limit)


def test_names():
    assert list(length_models()) == ["azure-conversation", "azure-code", "alpaca", "sharegpt"]
    with pytest.raises(InputError, match="no length distribution 'azure'; there are: azure-conv"):
        length_model("azure")


@pytest.mark.parametrize("name", FILES)
def test_built_in_tables_are_sound(name):
    model = length_models()[name]
    for quantiles in (model.prompt, model.output):
        assert (quantiles.probabilities[0], quantiles.probabilities[-1]) == (0.0, 1.0)
        assert len(quantiles.probabilities) == len(quantiles.tokens) == 21
        for points in (quantiles.probabilities, quantiles.tokens):
            assert list(points) == sorted(set(points))
        assert quantiles(0.0) >= 1
    # Parts of unequal weight would bend the distributions of prompt and output alone.
    for sums in (map(sum, model.grid), map(sum, zip(*model.grid, strict=True))):
        assert list(sums) == pytest.approx([1250] * 8, abs=4)


@pytest.mark.reference
def test_the_documented_nearness_is_what_is_measured(reference):
    documented = [line.strip() for line in lengths.__doc__.splitlines()]
    for line in lengths_table(reference / "traces").splitlines():
        assert line.strip() in documented
