"""Built-in distributions of request lengths: the shape of four data sets, without the data.

A distribution consists of three small tables: the quantile functions of prompt and output lengths,
each linear between 21 points, and a grid with the frequency of each combination of an eighth of
the prompts and an eighth of the answers. The grid contains more than a single correlation: the
Azure conversations, for example, are of two kinds, long prompts with long answers and short
prompts with short answers. Requests are drawn independently of each other.
``tests/tools/fit_lengths.py`` makes the tables.

Comparison with the data (``tests/tools/trace_nearness.py`` measures it on 100,000 drawn requests,
a test checks it; KS is the largest distance between the cumulative distributions; correlations
are of prompt with output length):

.. code-block:: text

                                       mean    p5   p25   p50   p75   p95   p99     KS
    azure-conversation prompt  data   763.1   181   391   947  1094  1353  1912
    azure-conversation prompt  drawn  763.1   181   391   935  1094  1361  1899  0.012
    azure-conversation output  data   232.4    52    92   157   397   463   609
    azure-conversation output  drawn  232.7    51    92   156   399   470   613  0.013
    azure-conversation Spearman: data 0.44, drawn 0.43; Pearson: data 0.51, drawn 0.50
    azure-code         prompt  data  1379.1    65   446  1173  2143  3378  3932
    azure-code         prompt  drawn 1376.0    65   441  1199  2141  3381  3938  0.012
    azure-code         output  data    27.5     6     9    13    23    88   252
    azure-code         output  drawn   27.8     6     9    13    23    89   253  0.010
    azure-code         Spearman: data -0.04, drawn -0.04; Pearson: data 0.02, drawn -0.01
    alpaca             prompt  data    13.9     6     9    11    16    29    57
    alpaca             prompt  drawn   13.9     6     9    11    16    30    58  0.011
    alpaca             output  data    48.3     5    12    37    72   126   207
    alpaca             output  drawn   48.5     5    12    38    72   126   210  0.005
    alpaca             Spearman: data -0.19, drawn -0.19; Pearson: data -0.07, drawn -0.11
    sharegpt           prompt  data    74.1     5    10    20    56   384   780
    sharegpt           prompt  drawn   74.4     5    11    20    56   387   788  0.013
    sharegpt           output  data   228.6    30   128   217   308   483   607
    sharegpt           output  drawn  228.7    32   127   217   309   484   609  0.007
    sharegpt           Spearman: data 0.02, drawn 0.02; Pearson: data -0.01, drawn -0.01
"""

from __future__ import annotations

import json
import math
import random
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from importlib import resources
from itertools import accumulate
from types import MappingProxyType

from helixsim.errors import InputError
from helixsim.traces.distributions import Distribution
from helixsim.traces.values import Lengths

MIN_COVERAGE = 0.01
"""Limits that keep less than this share of a distribution are refused: drawing would not end."""


@dataclass(frozen=True)
class Quantiles:
    """A distribution of lengths: its quantile function, linear between points.

    Attributes
    ----------
    probabilities
        Increasing from 0 to 1.
    tokens
        The quantile at each probability; a length is a quantile rounded to a whole number.
    """

    probabilities: tuple[float, ...]
    tokens: tuple[float, ...]

    def __call__(self, probability: float) -> int:
        """Length, in tokens, below which this share (0 <= share < 1) of the lengths lies."""
        return math.floor(_interpolate(probability, self.probabilities, self.tokens) + 0.5)

    def share_up_to(self, num_tokens: float) -> float:
        """Share of the lengths that are `num_tokens` or less."""
        if num_tokens >= self.tokens[-1]:
            return 1.0
        if not num_tokens >= self.tokens[0]:  # NaN keeps nothing
            return 0.0
        return _interpolate(math.floor(num_tokens) + 0.5, self.tokens, self.probabilities)


@dataclass(frozen=True)
class LengthModel:
    """A joint distribution of prompt and output lengths.

    Attributes
    ----------
    name
        As in :data:`LENGTH_MODELS`.
    prompt, output
        The marginal distributions.
    grid
        Square table of weights: row = prompt length, column = output length, both cut into
        parts of equal share from short to long. Within a cell, the two are independent.
    max_prompt_tokens, max_output_tokens
        Limits; see :meth:`limited`.
    """

    name: str
    prompt: Quantiles = field(repr=False)
    output: Quantiles = field(repr=False)
    grid: tuple[tuple[int, ...], ...] = field(repr=False)
    max_prompt_tokens: float = math.inf
    max_output_tokens: float = math.inf

    @cached_property
    def _cumulative(self) -> list[int]:
        return list(accumulate(weight for row in self.grid for weight in row))

    def sample(self, rng: random.Random) -> tuple[int, int]:
        """Draw the (prompt tokens, output tokens) of one request, within the limits."""
        cumulative, parts = self._cumulative, len(self.grid)
        while True:
            cell = bisect_right(cumulative, rng.random() * cumulative[-1])
            row, column = divmod(cell, parts)
            prompt = self.prompt((row + rng.random()) / parts)
            output = self.output((column + rng.random()) / parts)
            if prompt <= self.max_prompt_tokens and output <= self.max_output_tokens:
                return prompt, output

    def draw(self, num_requests: int, rng: random.Random) -> Lengths:
        """Draw the lengths of `num_requests` requests, at least one."""
        return Lengths(tuple(self.sample(rng) for _ in range(num_requests)), source=self.name)

    def limited(
        self, *, max_prompt_tokens: float = math.inf, max_output_tokens: float = math.inf
    ) -> LengthModel:
        """Leave out requests that are longer than a limit: they are drawn again.

        The same as :meth:`Lengths.limited <helixsim.traces.values.Lengths.limited>` for data.
        The limits of the published runs are 2,048 prompt and 1,024 output tokens.

        Raises
        ------
        InputError
            If the limits leave less than one request in a hundred.
        """
        limited = replace(
            self,
            max_prompt_tokens=min(max_prompt_tokens, self.max_prompt_tokens),
            max_output_tokens=min(max_output_tokens, self.max_output_tokens),
        )
        if not limited.coverage >= MIN_COVERAGE:
            raise InputError(
                f"{self.name}: limits of {max_prompt_tokens} prompt and {max_output_tokens} output "
                f"tokens leave {limited.coverage:.2%} of the requests; raise them"
            )
        return limited

    @property
    def coverage(self) -> float:
        """Share of the whole distribution that lies within the limits."""
        parts = len(self.grid)
        rows = self.prompt.share_up_to(self.max_prompt_tokens) * parts
        columns = self.output.share_up_to(self.max_output_tokens) * parts
        within = sum(
            weight * _clamp(rows - row) * _clamp(columns - column)
            for row, weights in enumerate(self.grid)
            for column, weight in enumerate(weights)
        )
        return within / self._cumulative[-1]


@dataclass(frozen=True)
class IndependentLengths:
    """Lengths of prompts and of answers, drawn independently of each other.

    Attributes
    ----------
    prompt, output
        The distributions, in tokens.
    """

    prompt: Distribution
    output: Distribution

    @property
    def mean_prompt_tokens(self) -> float:
        """Mean length of the prompts, in tokens."""
        return self.prompt.mean

    @property
    def mean_output_tokens(self) -> float:
        """Mean length of the answers, in tokens."""
        return self.output.mean

    def sample(self, rng: random.Random) -> tuple[int, int]:
        """Draw the (prompt tokens, output tokens) of one request."""
        return self.prompt.sample(rng), self.output.sample(rng)


def _clamp(share: float) -> float:
    return min(max(share, 0.0), 1.0)


def _interpolate(x: float, xs: Sequence[float], ys: Sequence[float]) -> float:
    right = min(bisect_right(xs, x), len(xs) - 1)
    x0, x1 = xs[right - 1], xs[right]
    return ys[right - 1] + (ys[right] - ys[right - 1]) * (x - x0) / (x1 - x0)


@cache
def length_models() -> Mapping[str, LengthModel]:
    """Name -> built-in distribution: azure-conversation, azure-code, alpaca, sharegpt."""
    text = resources.files("helixsim.traces").joinpath("lengths.json").read_text("utf-8")
    return MappingProxyType(
        {
            name: LengthModel(
                name,
                prompt=Quantiles(*(tuple(part) for part in zip(*data["prompt"], strict=True))),
                output=Quantiles(*(tuple(part) for part in zip(*data["output"], strict=True))),
                grid=tuple(tuple(row) for row in data["grid"]),
            )
            for name, data in json.loads(text).items()
        }
    )


def length_model(name: str) -> LengthModel:
    """The built-in distribution of this name.

    Raises
    ------
    InputError
        If there is none.
    """
    models = length_models()
    if name not in models:
        raise InputError(f"no length distribution '{name}'; there are: {', '.join(models)}")
    return models[name]
