"""Results that were written to a folder, read again."""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from helixsim.errors import InputError

if TYPE_CHECKING:
    import pandas as pd


class SavedResults:
    """The results of a run in a folder; the frames are those of a RunResult.

    Attributes
    ----------
    folder
        Where they lie.
    summary, manifest
        What stands in ``summary.json`` and ``manifest.json``.
    """

    def __init__(self, folder: Path, summary: dict[str, Any], manifest: dict[str, Any]) -> None:
        self.folder = folder
        self.summary = summary
        self.manifest = manifest

    @property
    def name(self) -> str:
        """Name of the folder."""
        return self.folder.resolve().name

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

    def _frame(self, table: str) -> pd.DataFrame:
        import pandas as pd

        for suffix in ("parquet", "csv"):
            file = self.folder / f"{table}.{suffix}"
            if not file.exists():
                continue
            try:
                return pd.read_parquet(file) if suffix == "parquet" else pd.read_csv(file)
            except (OSError, ValueError) as error:
                raise InputError(f"cannot be read as a table: {error}", file=file) from error
        raise InputError(
            f"has no {table}.parquet and no {table}.csv; `helixsim run -o` writes them",
            file=self.folder,
        )


def load_results(folder: str | Path) -> SavedResults:
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
    return SavedResults(folder, found[0], found[1])
