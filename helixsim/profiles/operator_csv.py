"""Folders of operator measurements: CSV files to the values of machine files.

The format is that of vLLM's operators as LLMServingSim measures them. Each file is a CSV, plain or
with gzip, of times in microseconds:

.. code-block:: text

    dense         layer,tokens,time_us
    per_sequence  layer,sequences,time_us
    attention     prefill_chunk,kv_prefill,n_decode,kv_decode,time_us
    moe           tokens,activated_experts,time_us                              optional
    skew_fit      pc,kp_label,alpha,n_samples                                   optional
"""

from __future__ import annotations

from collections.abc import Iterable

from helixsim.errors import InputError
from helixsim.profiles.csv_folder import CsvFolder
from helixsim.profiles.measured_grids import (
    Grid,
    attention_grid,
    curve_of,
    expert_grid,
    sum_of_curves,
)
from helixsim.profiles.operators import OperatorCurve

DEFAULT_SKEW = 0.06
"""Skew of decodes without measurements: about the mean of the measured ones."""

_TWICE_A_LAYER = "layernorm"
_ONCE = ("embedding", "final_layernorm")


class OperatorFolder(CsvFolder):
    """A folder of measurements.

    Raises
    ------
    InputError
        If it does not exist; all methods: if a file is missing or invalid.
    """

    def dense(self) -> tuple[OperatorCurve, OperatorCurve, OperatorCurve]:
        """Curves of a layer's operators together, of the embedding, and of the final norm."""
        curves = self._curves("dense", "tokens", _ONCE)
        layer = {name: curve for name, curve in curves.items() if name not in _ONCE}
        if not layer:
            raise InputError("has no operators of a layer", file=self.path("dense"))
        weights = {name: 2 if name == _TWICE_A_LAYER else 1 for name in layer}
        return sum_of_curves(layer, weights), curves["embedding"], curves["final_layernorm"]

    def head(self) -> OperatorCurve:
        """Curve of all operators by sequences: the head and the sampler."""
        curves = self._curves("per_sequence", "sequences", ("lm_head",))
        return sum_of_curves(curves, dict.fromkeys(curves, 1))

    def attention(self) -> Grid:
        """Axes and times of the attention table, complete."""
        columns = ("prefill_chunk", "kv_prefill", "n_decode", "kv_decode")
        cells = self._cells("attention", columns)
        try:
            return attention_grid(cells)
        except InputError as error:
            raise InputError(error.message, file=self.path("attention")) from error

    def experts(self) -> Grid:
        """Axes and times of the table of experts, complete."""
        return expert_grid(self._cells("moe", ("tokens", "activated_experts")))

    def decode_skew(self) -> float | None:
        """The weighted median of the skews of decodes alone; None without measurements."""
        if not self.has("skew_fit"):
            return None
        rows = []
        for line, row in self.rows("skew_fit", ("pc", "kp_label", "alpha", "n_samples")):
            if row["pc"] == "0" and row["kp_label"] == "kp=0":
                alpha = self.number("skew_fit", line, row, "alpha")
                rows.append((alpha, self.count("skew_fit", line, row, "n_samples")))
        rows.sort()
        half = sum(weight for _, weight in rows) / 2
        if not half:
            message = "has no rows of decodes alone, with pc 0 and kp_label kp=0"
            raise InputError(message, file=self.path("skew_fit"))
        below = 0
        for alpha, weight in rows:
            below += weight
            if below >= half:
                return min(max(alpha, 0.0), 1.0)
        raise AssertionError("the weights add up to more than half")

    def _curves(self, name: str, axis: str, needed: Iterable[str]) -> dict[str, OperatorCurve]:
        """Operator -> curve."""
        points: dict[str, dict[int, float]] = {}
        for line, row in self.rows(name, ("layer", axis, "time_us")):
            known = points.setdefault(row["layer"], {})
            count = self.count(name, line, row, axis)
            if count in known:
                raise self.error(name, line, axis, f"{row['layer']} at {count} stands here twice")
            known[count] = self.seconds(name, line, row, "time_us", 1e-6)
        for operator in needed:
            if operator not in points:
                raise InputError(f"has no rows of {operator}", file=self.path(name))
        return {operator: curve_of(known) for operator, known in points.items()}

    def _cells(self, name: str, axes: tuple[str, ...]) -> dict[tuple[int, ...], float]:
        cells: dict[tuple[int, ...], float] = {}
        for line, row in self.rows(name, (*axes, "time_us")):
            point = tuple(self.count(name, line, row, axis) for axis in axes)
            if point in cells:
                raise self.error(name, line, axes[0], f"{point} stands here twice")
            cells[point] = self.seconds(name, line, row, "time_us", 1e-6)
        return cells
