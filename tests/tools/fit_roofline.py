"""Fit the constants of the roofline, and write them with the errors of its figures.

    PYTHONPATH=.:tests python tests/tools/fit_roofline.py [REFERENCE_FOLDER]

The constants come from the GPUs in `measured_times.FITTED` only: operators of aiconfigurator-core
(A100, H100, L40S, RTX PRO 6000), each group for itself, and layers of the Helix profiles (V100).
Residuals are logarithms of predicted / measured, with a robust loss. It writes
`helixsim/profiles/roofline/constants.yaml`, and the tables of docs/profiles.md.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import yaml
from measured_times import KERNELS, OPERATORS, MeasuredStep, all_steps
from roofline_docs import write_docs
from roofline_errors import Predictor, error_rows, judged_row
from scipy.optimize import least_squares

from helixsim.hardware.catalogue import load_gpu
from helixsim.hardware.gpu import GpuMachine
from helixsim.llms.architecture import LayerKind
from helixsim.profiles.roofline import attention, matrices
from helixsim.profiles.roofline.collectives import all_reduce
from helixsim.profiles.roofline.constants import FILE, Constants, ConstantsFile, load_constants
from helixsim.profiles.roofline.experts import experts_s
from helixsim.profiles.roofline.rates import Rates

REFERENCE = Path(__file__).parents[3] / "shared" / "reference"
MEASURED = {
    "ampere": "A100-80-SXM",
    "ada": "L40S",
    "hopper": "H100-SXM",
    "blackwell-rtx": "RTX-PRO-6000",
}
"""Generation -> the GPU that its constants are fitted on."""

START: dict[str, Any] = {
    "tflop_per_joule": 0.7,
    "narrow_gain": 1.5,
    "weight_share": 0.8,
    "attention_share": 0.6,
    "attention_us": 12.0,
    "kv_share": 0.85,
    "kv_flop_share": 0.5,
    "expert_share": 0.5,
    "expert_weight_share": 0.75,
}
"""Where the fit begins. No measurement tells `kv_flop_share` of kernels that use tensor cores."""

DOCUMENT: dict[str, Any] = {
    "schema": 1,
    "kind": "roofline",
    "peak_share": 1.0,
    "corner": 2.5,
    "small_kernel_us": 2.1,
    "matrix_us": 5.0,
    "small_kernel_share": 0.9,
    "prefill_us": 15.0,
    "expert_us": 15.0,
    "expert_rows": 16.0,
    "expert_inner": 500.0,
    "sampler_us": 20.0,  # with two passes: the sampler of the operator tables of RTX PRO 6000
    "sampler_passes": 2.0,
    "generations": {name: dict(START) for name in ("volta", *MEASURED, "unmeasured")},
    "like": {"turing": "volta"},
    "links": {
        "nvlink": {"latency_us": 5.0, "latency_per_gpu_us": 0.1, "bandwidth_share": 0.6},
        "pcie": {"latency_us": 5.0, "latency_per_gpu_us": 4.0, "bandwidth_share": 0.55},
    },
    "judged": {
        "gpu": "all", "source": "all", "set": "judged",
        "points": 1, "median": 0.0, "p90": 0.0, "within_30": 1.0,
    },
    "errors": [],
}  # fmt: skip

Key = tuple[str, ...]
"""Path of a constant in the document."""


def constants_of(document: dict[str, Any]) -> Constants:
    """The document as constants."""
    read = ConstantsFile.model_validate(document)
    return Constants(read, read.to_efficiency())


def fit(
    document: dict[str, Any],
    keys: Sequence[Key],
    steps: Sequence[MeasuredStep],
    predictor: Callable[[Constants], Callable[[MeasuredStep], float]],
    measured: Callable[[MeasuredStep], float],
) -> None:
    """Change the constants at `keys` so that they fit."""
    highest = [1.0 if key[-1].endswith("share") else np.inf for key in keys]
    lowest = [1.0 if key[-1] == "narrow_gain" else 1e-9 for key in keys]
    start = [get(document, key) for key in keys]

    def residuals(logs: Sequence[float]) -> list[float]:
        for key, value in zip(keys, logs, strict=True):
            put(document, key, float(np.exp(value)))
        return residuals_at(document, steps, predictor, measured)

    found = least_squares(
        residuals,
        np.log(start),
        bounds=(np.log(np.array(lowest) - 1e-9 / 2), np.log(np.array(highest) + 1e-9)),
        loss="soft_l1",
        f_scale=0.1,
    )
    for key, value in zip(keys, found.x, strict=True):
        put(document, key, min(float(f"{np.exp(value):.3g}"), highest[keys.index(key)]))
    errors = [abs(np.expm1(value)) for value in residuals_at(document, steps, predictor, measured)]
    print(f"{keys[0][-1]}: median {median(errors):.3f}, 90 % {np.quantile(errors, 0.9):.3f}")
    for key in keys:
        print("   ", ".".join(key), get(document, key))


def residuals_at(
    document: dict[str, Any],
    steps: Sequence[MeasuredStep],
    predictor: Callable[[Constants], Callable[[MeasuredStep], float]],
    measured: Callable[[MeasuredStep], float],
) -> list[float]:
    """Logarithms of predicted / measured."""
    predicted = predictor(constants_of(document))
    return [float(np.log(predicted(step) / measured(step))) for step in steps]


def get(document: dict[str, Any], key: Key) -> Any:
    """The value at a path."""
    for part in key:
        document = document[part]
    return document


def put(document: dict[str, Any], key: Key, value: float) -> None:
    """Change the value at a path."""
    get(document, key[:-1])[key[-1]] = value


@dataclass(frozen=True)
class Group:
    """Predicts the time of one group of operators, all layers together."""

    name: str

    def measured(self, step: MeasuredStep) -> float:
        """What was measured."""
        return step.groups[self.name]

    def predictor(self, constants: Constants) -> Callable[[MeasuredStep], float]:
        """What the formulas say with these constants."""
        return partial(self._predicted, constants)

    def _predicted(self, constants: Constants, step: MeasuredStep) -> float:
        gpu, efficiency = load_gpu(step.gpu), constants.efficiency
        rates = Rates(gpu, efficiency, efficiency.generations[constants.generation_of(gpu)])
        llm = step.architecture
        if self.name == "all_reduce":
            each = all_reduce(GpuMachine(gpu, step.num_gpus), efficiency)
            size = step.number * llm.activation_bytes_per_token
            return 2 * llm.num_layers * each(size, step.num_gpus)
        return sum(
            llm.kind_of_layer.count(number) * self._layer_s(rates, step, kind)
            for number, kind in enumerate(llm.kinds)
        )

    def _layer_s(self, rates: Rates, step: MeasuredStep, kind: LayerKind) -> float:
        llm, number, num_gpus = step.architecture, step.number, step.num_gpus
        if self.name == "matrices":
            return matrices.matrices_s(rates, llm, kind, number, num_gpus)
        if self.name == "elementwise":
            return matrices.small_kernels_s(rates, llm, kind, number, num_gpus)
        if self.name == "attention":
            if step.phase == "prefill":
                return attention.prefill_s(rates, llm, kind, number, step.context, num_gpus)
            return attention.decode_s(rates, llm, kind, number, step.context, num_gpus)
        experts = kind.experts
        assert experts is not None
        unused = (1 - experts.experts_per_token / experts.num_experts) ** number
        distinct = experts.num_experts * (1 - unused)
        return experts_s(rates, llm, experts, number, distinct, num_gpus)


def fit_kernels(document: dict[str, Any], steps: Sequence[MeasuredStep]) -> None:
    """Fit each group of operators on aiconfigurator's steps."""
    known = [step for step in steps if step.source == KERNELS and step.gpu in MEASURED.values()]
    plain = [step for step in known if step.weights != "fp8"]

    def each(*names: str) -> list[Key]:
        return [("generations", gen, name) for gen in MEASURED for name in names]

    def reached(name: str) -> float:
        gpu = load_gpu(name)
        per_joule = get(document, ("generations", gpu.generation, "tflop_per_joule"))
        assert gpu.power_w is not None
        return float(per_joule * gpu.power_w * 1e12 / gpu.flop_per_s["bf16"])

    def run(name: str, keys: Sequence[Key], of: Sequence[MeasuredStep], *same: str) -> None:
        group = Group(name)
        unique = {tuple(getattr(step, key) for key in same): step for step in of}
        used = [step for step in unique.values() if group.measured(step) > 0]
        fit(document, keys, used, group.predictor, group.measured)

    pair = ("gpu", "llm", "weights", "num_gpus", "number")
    dense = [step for step in known if step.llm in ("llama-3.1-8b", "llama-3.1-70b", "qwen3-32b")]
    gains = [key for key in each("narrow_gain") if "ampere" not in key]
    run(
        "matrices",
        [("matrix_us",), ("corner",), *each("tflop_per_joule", "weight_share"), *gains],
        dense,
        *pair,
    )
    # Each board is taken to be at its power limit. What no limit explains is the share of the peak
    # that the best of them reaches.
    document["peak_share"] = float(f"{max(map(reached, MEASURED.values())):.3g}")
    run("elementwise", [("small_kernel_us",), ("small_kernel_share",)], plain, *pair)
    run(
        "attention",
        [("prefill_us",), *each("attention_us", "kv_share", "attention_share")],
        plain,
        *pair,
        "context",
        "phase",
    )
    run(
        "experts",
        [
            ("expert_us",),
            ("expert_rows",),
            ("expert_inner",),
            *each("expert_share", "expert_weight_share"),
        ],
        plain,
        *pair,
    )
    constants = ("latency_us", "latency_per_gpu_us", "bandwidth_share")
    for link in ("nvlink", "pcie"):
        linked = [step for step in plain if load_gpu(step.gpu).interconnect == link]
        # The L40S were in a machine whose PCIe reached 4 GB/s among four: no data sheet says so.
        linked = [step for step in linked if step.gpu != "L40S" or step.num_gpus == 2]
        run("all_reduce", [("links", link, name) for name in constants], linked, *pair)


def fit_pcie(document: dict[str, Any], steps: Sequence[MeasuredStep]) -> None:
    """Fit all-reduces over PCIe again, on whole steps.

    Between two GPUs, kernels that were measured alone took 5 us and 35 GB/s; in a recorded run of
    vLLM, all-reduces took 62 us and 20 GB/s. Both sources have the same weight.
    """
    shared = [
        step
        for step in steps
        if step.num_gpus > 1
        and load_gpu(step.gpu).interconnect == "pcie"
        and not (step.gpu == "L40S" and step.num_gpus > 2)
    ]
    alone = [step for step in shared if step.source == KERNELS]
    served = [step for step in shared if step.source == OPERATORS]
    weighted = alone + served * (len(alone) // len(served))
    keys = [("links", "pcie", name) for name in ("latency_us", "bandwidth_share")]
    fit(document, keys, weighted, Predictor, lambda step: step.seconds)


def fit_volta(document: dict[str, Any], steps: Sequence[MeasuredStep]) -> None:
    """Fit the layers of V100; what they cannot tell is as on the next generation."""
    volta = document["generations"]["volta"] = dict(document["generations"]["ampere"])
    volta.update(tflop_per_joule=0.3, kv_flop_share=0.01)
    names = ("tflop_per_joule", "weight_share", "kv_share", "kv_flop_share")
    own = [step for step in steps if step.gpu == "V100-16-SXM"]
    fit(
        document,
        [("generations", "volta", name) for name in names],
        own,
        Predictor,
        lambda step: step.seconds,
    )


def derive(document: dict[str, Any]) -> None:
    """Constants of generations without measurements."""
    known = document["generations"]
    # Each generation needs less energy for a product, so that an older one's limit says nothing.
    known["blackwell"] = {**known["hopper"], "tflop_per_joule": None}
    middle = {name: float(f"{median(known[gen][name] for gen in MEASURED):.3g}") for name in START}
    known["unmeasured"] = {**middle, "tflop_per_joule": None}
    document["links"]["infinity-fabric"] = dict(document["links"]["nvlink"])


def main() -> None:
    """Fit, judge, and write."""
    reference = Path(sys.argv[1]) if len(sys.argv) > 1 else REFERENCE
    steps = all_steps(reference)
    fitted = [step for step in steps if step.set == "fitted"]
    document = DOCUMENT
    fit_kernels(document, fitted)
    fit_pcie(document, fitted)
    fit_volta(document, fitted)
    derive(document)
    constants = constants_of(document)
    document["errors"] = error_rows(steps, constants)
    document["judged"] = judged_row(steps, constants)
    text = yaml.safe_dump(document, sort_keys=False, default_flow_style=None, width=100)
    FILE.write_text(_HEAD + text, encoding="utf-8")
    write_docs(load_constants(), steps)
    for row in [*document["errors"], document["judged"]]:
        print(*row.values())


_HEAD = """\
# Constants of the roofline, and the errors of its figures; tests/tools/fit_roofline.py wrote it.
# Fitted on the GPUs whose errors say `fitted`: kernels that aiconfigurator-core 0.12.0 measured
# (A100-80-SXM, H100-SXM, L40S, RTX-PRO-6000), and the layers of the Helix profiles (V100).
# blackwell: hopper without a power limit. unmeasured: medians of the four, without a power limit.
# infinity-fabric: nvlink. Other links: pcie.
# helixsim/profiles/roofline/efficiency.py says what each constant is.
"""


if __name__ == "__main__":
    main()
