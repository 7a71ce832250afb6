"""How far the roofline is from what others measured."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from statistics import median
from typing import Any

from measured_times import MeasuredStep

from helixsim.hardware.catalogue import load_gpu
from helixsim.hardware.gpu import GpuMachine
from helixsim.profiles.operators import OperatorTables
from helixsim.profiles.roofline import matrices
from helixsim.profiles.roofline.constants import Constants
from helixsim.profiles.roofline.rates import Rates
from helixsim.profiles.roofline.source import RooflineSource


class Predictor:
    """Step times by the roofline with these constants."""

    def __init__(self, constants: Constants) -> None:
        self._constants = constants
        self._tables = cache(self._build)

    def __call__(self, step: MeasuredStep) -> float:
        """Seconds of a step, of the same operators as were measured."""
        tables = self._tables(step.gpu, step.llm, step.weights, step.num_gpus)
        llm = step.architecture
        stage = tables.stage(0, llm.num_layers)
        layer_s = stage.layer_s(step.number, llm.activation_bytes_per_token)
        if step.phase == "prefill":
            chunk = step.number / step.prompts
            layer_s += step.prompts * stage.attention_s(chunk, step.context, 0, 0)
        else:
            layer_s += stage.attention_s(0, 0, step.number, step.context)
        if step.is_layer:
            return layer_s
        sequences = 1 if step.phase == "prefill" else step.number
        once_s = tables.embedding(step.number) + tables.last_s(step.number, sequences)
        if not step.has_sampler:
            once_s -= matrices.sampler_s(self._rates(step.gpu), llm, sequences)
        return llm.num_layers * layer_s + once_s

    def _build(self, gpu: str, llm: str, weights: str, num_gpus: int) -> OperatorTables:
        from architectures import measured_llm

        source = RooflineSource(self._constants)
        return source(measured_llm(llm, weights), GpuMachine(load_gpu(gpu), num_gpus)).tables

    def _rates(self, name: str) -> Rates:
        gpu, efficiency = load_gpu(name), self._constants.efficiency
        return Rates(gpu, efficiency, efficiency.generations[self._constants.generation_of(gpu)])


def error_rows(steps: Iterable[MeasuredStep], constants: Constants) -> list[dict[str, Any]]:
    """One row for each GPU and source, rounded: the block `errors` of the constants' file."""
    predicted = Predictor(constants)
    found: dict[tuple[str, str, str], list[float]] = {}
    for step in steps:
        error = abs(predicted(step) / step.seconds - 1)
        found.setdefault((step.set, step.gpu, _label(step)), []).append(error)
    return [row(*key, errors) for key, errors in sorted(found.items())]


def _label(step: MeasuredStep) -> str:
    """The source; apart, the machine whose PCIe reached 4 GB/s among four GPUs, 2 among eight."""
    slow = step.gpu == "L40S" and step.num_gpus > 2
    return f"{step.source}, 4 and 8 GPUs" if slow else step.source


def judged_row(steps: Iterable[MeasuredStep], constants: Constants) -> dict[str, Any]:
    """All points of the judged GPUs together: the block `judged` of the constants' file."""
    predicted = Predictor(constants)
    errors = [abs(predicted(step) / step.seconds - 1) for step in steps if step.set == "judged"]
    return row("judged", "all", "all", errors)


def row(group: str, gpu: str, source: str, errors: list[float]) -> dict[str, Any]:
    """Figures of some points."""
    ordered = sorted(errors)
    return {
        "gpu": gpu,
        "source": source,
        "set": group,
        "points": len(ordered),
        "median": round(median(ordered), 3),
        "p90": round(ordered[int(0.9 * len(ordered))], 3),
        "within_30": round(sum(error <= 0.3 for error in ordered) / len(ordered), 3),
    }
