"""The result of a run, from memory or from a folder: a summary, and frames to look into."""

from __future__ import annotations

import json
from array import array
from collections.abc import Mapping
from contextlib import nullcontext
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from helixsim.display import placement_image, result_plot, short_text, table_html
from helixsim.errors import HelixError, InputError
from helixsim.metrics.output import TRACE_FILE, OutputFolder, TableFormat, build_manifest
from helixsim.metrics.recorder import Columns
from helixsim.metrics.summary import build_summary, figures_of

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from helixsim.metrics.gauges import MeasuredRun
    from helixsim.metrics.timeline import Timeline
    from helixsim.scenario.resolved import Scenario

_REPR_FIGURES = {
    "decode_tokens_per_s": "{:.1f} decode tokens/s",
    "ttft_s.p50": "first token after {:.3g} s (p50)",
    "requests.completed": "{:.0f} requests completed",
}
_TABLES = ("requests", "nodes", "links", "timeline", "iterations")


class RunResult:
    """The result of a run: of :func:`helixsim.simulate`, of a real cluster, or from a folder.

    Attributes
    ----------
    summary
        The content of ``summary.json``; every key is documented in docs/results.md.
    folder
        The folder that the result was read from; None for a run of this process.
    """

    def __init__(
        self,
        summary: dict[str, Any],
        *,
        scenario: Scenario | None = None,
        tables: dict[str, Columns] | None = None,
        manifest: dict[str, Any] | None = None,
        folder: Path | None = None,
    ) -> None:
        self.summary = summary
        self.folder = folder
        self._scenario = scenario
        self._tables = tables
        self._manifest = manifest
        self._trace: bytes | None = None

    @classmethod
    def of(cls, run: MeasuredRun, timeline: Timeline, *, interrupted: bool = False) -> RunResult:
        """Collect the result of a run that has ended."""
        recorder = run.recorder
        tables = {
            "requests": recorder.requests,
            "nodes": timeline.nodes,
            "links": timeline.links,
            "timeline": timeline.cluster,
        }
        if recorder.iterations is not None:
            tables["iterations"] = recorder.iterations
        summary = build_summary(run, timeline, interrupted=interrupted)
        return cls(summary, scenario=run.scenario, tables=tables)

    @property
    def name(self) -> str:
        """Name of the folder that the result was read from, else of the scenario."""
        if self.folder is not None:
            return self.folder.resolve().name
        return str(self.summary.get("scenario", ""))

    @property
    def seed(self) -> int:
        """The seed that was used."""
        return int(self.summary.get("seed", 0))

    @property
    def manifest(self) -> dict[str, Any]:
        """As in ``manifest.json``: scenario, seed and versions."""
        if self._manifest is not None:
            return self._manifest
        scenario = self.scenario
        partial = bool(self.summary["partial"])
        return build_manifest(scenario.document, scenario.digest, self.seed, partial=partial)

    @cached_property
    def scenario(self) -> Scenario:
        """The scenario that was run.

        For results from a folder, the manifest has it; the files that it names are looked for in
        the folder, beside it, in the current directory and among the shipped scenarios.

        Raises
        ------
        InputError
            If files that the scenario names are not found there, or have changed.
        """
        from helixsim.scenario.files import shipped_folder

        if self._scenario is not None:
            return self._scenario
        folder = self.folder or Path()
        for base_dir in (folder, folder.resolve().parent, Path(), shipped_folder()):
            found = self.scenario_from(base_dir)
            if found is not None:
                return found
        raise InputError(
            "the scenario of these results names files that are not found beside them, in the "
            "current directory or among the shipped scenarios, or that have changed since",
            file=folder,
        )

    def scenario_from(self, base_dir: Path) -> Scenario | None:
        """The scenario of the manifest, with the files that it names relative to a folder.

        None if a file is not there, or not as it was when the scenario was run.
        """
        from helixsim.scenario.load import resolve_scenario

        try:
            found = resolve_scenario(self.manifest.get("scenario"), base_dir / "scenario.yaml")
        except HelixError:
            return None
        return found if found.digest == self.manifest.get("scenario_sha256") else None

    @cached_property
    def tables(self) -> dict[str, Columns]:
        """Name -> columns of each frame; ``iterations`` only if they were recorded."""
        if self._tables is not None:
            return self._tables
        assert self.folder is not None
        return {
            name: _columns_of(getattr(self, name))
            for name in _TABLES
            if name != "iterations" or _table_file(self.folder, name) is not None
        }

    @cached_property
    def requests(self) -> pd.DataFrame:
        """One row per request."""
        return self._frame("requests")

    @cached_property
    def nodes(self) -> pd.DataFrame:
        """One row per node and interval."""
        return self._frame("nodes")

    @cached_property
    def links(self) -> pd.DataFrame:
        """One row per link and interval."""
        return self._frame("links")

    @cached_property
    def timeline(self) -> pd.DataFrame:
        """One row per interval, for the cluster as a whole."""
        return self._frame("timeline")

    @cached_property
    def iterations(self) -> pd.DataFrame:
        """One row per pass of every request, in the order in which they came back.

        Raises
        ------
        KeyError
            If iterations were not recorded.
        """
        if self._tables is not None and "iterations" not in self._tables:
            raise KeyError("iterations were not recorded: simulate(..., record_iterations=True)")
        return self._frame("iterations")

    @property
    def trace(self) -> bytes | None:
        """The content of ``trace.json.gz``; None if the run was not traced.

        Raises
        ------
        InputError
            If the file cannot be read.
        """
        if self._trace is not None or self.folder is None:
            return self._trace
        file = self.folder / TRACE_FILE
        try:
            return file.read_bytes() if file.exists() else None
        except OSError as error:
            raise InputError(f"cannot be read: {error}", file=file) from error

    def keep_trace(self, trace: bytes) -> None:
        """Keep what was traced, as :attr:`trace`."""
        self._trace = trace

    def plot(self, name: str | None = None) -> Figure:
        """Draw the result: throughput and latencies, or one picture of ``helixsim.plots``.

        Parameters
        ----------
        name
            ``latencies``, ``throughput``, ``utilisation``, ``kv-use``, ``queues`` or
            ``congestion``, and ``node-timeline`` if the run was traced; see docs/pictures.md.

        Raises
        ------
        InputError
            If there is no picture of that name, or it needs a trace and there is none.
        """
        return result_plot(self, name)

    def __repr__(self) -> str:
        figures = figures_of(self.summary)
        parts = [
            text.format(figures[name]) for name, text in _REPR_FIGURES.items() if name in figures
        ]
        return short_text("RunResult", f"{self.name}, seed {self.seed}: {', '.join(parts)}")

    def _repr_html_(self) -> str:
        from helixsim.metrics.summary_text import summary_rows

        try:
            picture = placement_image(self.scenario)
        except InputError:
            picture = ""
        title = f"Result of {self.name}, seed {self.seed}"
        return table_html(title, summary_rows(self.summary), picture=picture)

    def write(
        self,
        folder: str | Path | OutputFolder,
        *,
        table_format: TableFormat = "parquet",
        overwrite: bool = False,
        more: Mapping[str, bytes] | None = None,
        about: Mapping[str, Any] | None = None,
    ) -> None:
        """Write the result into a folder, as ``helixsim run -o`` does.

        Parameters
        ----------
        folder
            Its name, or one that was reserved before the run.
        table_format
            Format of the tables.
        overwrite
            Replace the results of an earlier run in the folder.
        more
            Further files, name -> contents; see :meth:`OutputFolder.write`.
        about
            What the manifest says of a real cluster.

        Raises
        ------
        OutputError
            If the folder exists and `overwrite` is false, or something cannot be written.
        """
        manifest = self.manifest | ({} if about is None else {"real": dict(about)})
        with (
            nullcontext(folder)
            if isinstance(folder, OutputFolder)
            else OutputFolder(folder, overwrite=overwrite)
        ) as output:
            files = dict(more or {})
            if self.trace is not None:
                files[TRACE_FILE] = self.trace
            output.write(self.summary, self.tables, manifest, table_format, more=files)

    def _frame(self, name: str) -> pd.DataFrame:
        if self._tables is not None:
            return frame_of(self._tables[name])
        assert self.folder is not None
        return _read_table(self.folder, name)


def load_results(folder: str | Path) -> RunResult:
    """Read the results that ``helixsim run -o`` or ``helixreal run -o`` wrote.

    Tables are read when they are asked for.

    Raises
    ------
    InputError
        If the folder holds no results, or a file in it cannot be read.
    """
    folder = Path(folder)
    found = []
    for name in ("summary.json", "manifest.json"):
        file = folder / name
        try:
            data = json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise InputError(
                f"has no {name}; name a folder that `helixsim run -o` or `helixreal run -o` wrote",
                file=folder,
            ) from error
        except (OSError, ValueError) as error:
            raise InputError(f"cannot be read: {error}", file=file) from error
        if not isinstance(data, dict):
            raise InputError("should be an object", file=file)
        found.append(data)
    return RunResult(found[0], manifest=found[1], folder=folder)


def frame_of(columns: Columns) -> pd.DataFrame:
    """The same table for pandas; it shares the numbers."""
    import numpy as np
    import pandas as pd

    return pd.DataFrame(
        {
            column: pd.Series(values, dtype="str")
            if isinstance(values, list)
            else np.frombuffer(values, dtype=values.typecode)
            if len(values)
            else np.empty(0, dtype=values.typecode)
            for column, values in columns.as_dict().items()
        }
    )


def _columns_of(frame: pd.DataFrame) -> Columns:
    """The inverse of :func:`frame_of`; missing texts are None."""
    kinds = {"i": "q", "f": "d"}
    types = "".join(kinds.get(dtype.kind, "s") for dtype in frame.dtypes)
    table = Columns(tuple(frame.columns), types)
    for place, (code, name) in enumerate(zip(types, frame.columns, strict=True)):
        column = frame[name]
        if code == "s":
            texts = column.astype(object)
            table.values[place] = texts.where(texts.notna(), None).tolist()
        else:
            table.values[place] = array(code, column.tolist())
    return table


def _table_file(folder: Path, table: str) -> Path | None:
    files = (folder / f"{table}.{suffix}" for suffix in ("parquet", "csv"))
    return next((file for file in files if file.exists()), None)


def _read_table(folder: Path, table: str) -> pd.DataFrame:
    import pandas as pd

    file = _table_file(folder, table)
    if file is None:
        raise InputError(
            f"has no {table}.parquet and no {table}.csv; `helixsim run -o` writes them",
            file=folder,
        )
    try:
        return pd.read_parquet(file) if file.suffix == ".parquet" else pd.read_csv(file)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot be read as a table: {error}", file=file) from error
