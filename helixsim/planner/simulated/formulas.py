"""Figures of a run by the surrogate's estimate of its placement, which knows means only.

- Percentiles are estimated by means, and latencies of a class of users or a front end by the
  latencies of all requests.
- An SLO is kept by the share 1 / (1 + (m / L)^4) of the requests that are served, for each of its
  limits L, where m is the mean latency: half of the requests at m = L, 94 % at m = L/2. The shares
  of several limits are multiplied. Requests that arrive but are not served are not within limits.
- Goodput is the rate of requests times these shares, classes by their shares of the requests.
- The hit rate of prefix caches is estimated by the throughput, counts of restarts, preemptions and
  rejections by its inverse: better placements have fewer.

What the formulas lack, the correction learns from simulations, as a factor
(:mod:`.correction`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from helixsim.metrics.costs import cost, energy
from helixsim.planner.figures import COUNTS, GOODPUT, OF_SLOS, latency_name
from helixsim.planner.simulated.estimates import Estimate
from helixsim.scenario.offered_load import class_weights
from helixsim.scenario.resolved import Scenario, Slo

_STEEPNESS = 4
_ATTAINMENT, _, _GOOD_TOKENS = OF_SLOS


class Term(NamedTuple):
    """Requests that SLOs are for.

    Attributes
    ----------
    share
        Their share of all requests.
    group
        Prefix of their latencies, such as ``classes.chat.``; empty for all requests.
    slos
        The SLOs.
    """

    share: float
    group: str
    slos: tuple[Slo, ...]

    def inputs(self) -> tuple[str, ...]:
        """Names of the mean latencies that decide how many keep the SLOs."""
        found = [f"{self.group}{family}.mean" for slo in self.slos for family, _ in _limits(slo)]
        return tuple(dict.fromkeys(found))

    def within(self, latencies_s: Mapping[str, float]) -> float:
        """Share of these requests that keeps all SLOs, given mean latencies by name."""
        found = 1.0
        for slo in self.slos:
            for family, limit_s in _limits(slo):
                ratio = latencies_s[f"{self.group}{family}.mean"] / limit_s
                found /= 1 + min(ratio, 1e9) ** _STEEPNESS
        return found


def _limits(slo: Slo) -> list[tuple[str, float]]:
    limits = (("ttft_s", slo.ttft_s), ("tpot_s", slo.tpot_s), ("e2e_s", slo.e2e_s))
    return [(family, limit_s) for family, limit_s in limits if limit_s is not None]


class Formulas:
    """Formulas of one scenario; see the head of the module.

    Parameters
    ----------
    prompt_tokens, output_tokens
        Of the mean request.
    terms
        Prefix of an SLO's figures, such as ``slo.chat.``, -> the requests that it is for; the
        empty one -> all requests, by classes.
    run_s
        Length of a run.
    at_one_token_per_s
        Figures that fall with the rate of tokens, such as costs -> their value at 1 token/s.
    """

    def __init__(
        self,
        output_tokens: float,
        prompt_tokens: float = 0.0,
        *,
        terms: Mapping[str, Sequence[Term]] | None = None,
        run_s: float = 1.0,
        at_one_token_per_s: Mapping[str, float] | None = None,
    ) -> None:
        self._output_tokens = output_tokens
        self._run_s = run_s
        self._terms = {prefix: tuple(each) for prefix, each in (terms or {}).items()}
        self._inputs: dict[str, tuple[str, ...]] = {}
        self._at_one_token_per_s = dict(at_one_token_per_s or {})
        self._per_decode = {
            "decode_tokens_per_s": 1.0,
            "output_tokens_per_s": 1 + 1 / output_tokens,
            "total_tokens_per_s": 1 + (1 + prompt_tokens) / output_tokens,
            "requests_per_s": 1 / output_tokens,
            "requests.completed": run_s / output_tokens,
            GOODPUT: 1 / output_tokens,
        }

    @classmethod
    def of_scenario(
        cls, scenario: Scenario, prompt_tokens: float, output_tokens: float
    ) -> Formulas:
        """The formulas of a scenario, for a mean request."""
        parts = {"cost": cost(scenario, 1.0, 1.0), "energy": energy(scenario, 1.0, 1.0)}
        return cls(
            output_tokens,
            prompt_tokens,
            terms=_terms(scenario),
            run_s=scenario.run.duration_s,
            at_one_token_per_s={
                f"{part}.{name}": value
                for part, figures in parts.items()
                for name, value in (figures or {}).items()
                if "_per_million_" in name and isinstance(value, float)
            },
        )

    def inputs(self, name: str) -> tuple[str, ...]:
        """Names of the mean latencies that a figure of SLOs is computed from; else none."""
        found = self._inputs.get(name)
        if found is None:
            prefix, last = _split(name)
            terms = self._terms.get(prefix, ()) if last in OF_SLOS else ()
            found = tuple(dict.fromkeys(each for term in terms for each in term.inputs()))
            self._inputs[name] = found
        return found

    def decode_tokens_per_s(self, name: str, value: float) -> float | None:
        """The throughput without which a figure cannot reach a value; None if that is not known."""
        per_decode = self._per_decode.get(name)
        return None if per_decode is None else value / per_decode

    def value(
        self, name: str, estimate: Estimate, latencies_s: Mapping[str, float] | None = None
    ) -> float:
        """The estimate of a figure.

        Parameters
        ----------
        name, estimate
            The figure, and the estimate of the placement.
        latencies_s
            For a figure of SLOs: its :meth:`inputs`, corrected.
        """
        rate = estimate.decode_tokens_per_s
        prefix, last = _split(name)
        if last in OF_SLOS and prefix in self._terms:
            return self._of_slos(self._terms[prefix], last, estimate, latencies_s or {})
        if name in self._per_decode:
            return rate * self._per_decode[name]
        if (parts := latency_name(name)) is not None:
            return self._latency_s(parts.family, estimate)
        if name in self._at_one_token_per_s or name in COUNTS:
            which = "total" if name.endswith("total_tokens") else "output"
            tokens_per_s = rate * self._per_decode[f"{which}_tokens_per_s"]
            return self._at_one_token_per_s.get(name, 1.0) / max(tokens_per_s, 1e-9)
        return rate

    def _latency_s(self, family: str, estimate: Estimate) -> float:
        if family in ("prompt_latency_s", "ttft_s"):
            return estimate.prompt_latency_s
        if family == "e2e_s":
            return estimate.prompt_latency_s + self._output_tokens * estimate.decode_latency_s
        return estimate.decode_latency_s

    def _of_slos(
        self,
        terms: Sequence[Term],
        last: str,
        estimate: Estimate,
        latencies_s: Mapping[str, float],
    ) -> float:
        within = sum(term.share * term.within(latencies_s) for term in terms)
        if last == _ATTAINMENT:
            share = sum(term.share for term in terms) or 1.0
            return within / share * self._served_share(estimate)
        rate = "output_tokens_per_s" if last == _GOOD_TOKENS else "requests_per_s"
        return within * estimate.decode_tokens_per_s * self._per_decode[rate]

    def _served_share(self, estimate: Estimate) -> float:
        return max(0.0, 1 - estimate.missed_s / self._run_s)


def _split(name: str) -> tuple[str, str]:
    """``slo.chat.`` and ``attainment`` of ``slo.chat.attainment``."""
    cut = name.rfind(".") + 1
    return name[:cut], name[cut:]


def _terms(scenario: Scenario) -> dict[str, list[Term]]:
    """The requests that each SLO's figures are of, by the prefix of their names."""
    slos = scenario.slos
    if not slos:
        return {}
    shares = _class_shares(scenario)
    found: dict[str, list[Term]] = {}
    for slo in slos:
        group = f"classes.{slo.name}." if slo.name in shares else ""
        found[f"slo.{slo.name}."] = [Term(shares.get(slo.name, 1.0), group, (slo,))]
    found[""] = []
    if (others := 1 - sum(shares.values())) > 0:
        for_all = tuple(slo for slo in slos if slo.name not in shares)
        found[""].append(Term(others, "", for_all))
    for name, share in shares.items():
        own = [slo for slo in slos if slo.name == name or slo.name not in shares]
        found[""].append(Term(share, f"classes.{name}.", tuple(own)))
        for slo in own:
            found[f"classes.{name}.slo.{slo.name}."] = [Term(share, f"classes.{name}.", (slo,))]
    for front_end in scenario.cluster.front_ends:
        for slo in slos:
            prefix = f"front_ends.{front_end.name}."
            found[f"{prefix}slo.{slo.name}."] = [Term(front_end.share, prefix, (slo,))]
    return found


def _class_shares(scenario: Scenario) -> dict[str, float]:
    """Class of users -> its share of the requests; a request of a trace may be of none."""
    workload = scenario.workload
    if workload.trace is None:
        weights = class_weights(workload, scenario.run.duration_s) if workload.classes else ()
        return dict(zip(workload.class_names, weights, strict=True))
    counts = Counter(request.user_class for request in workload.trace.requests)
    return {name: counts[name] / counts.total() for name in workload.class_names}
