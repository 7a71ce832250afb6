"""Tables that were asked for before, on disk."""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress
from pathlib import Path

from helixsim.errors import HelixError
from helixsim.output_files import write_whole
from helixsim.profiles.operator_documents import operators_document, tables_of_document
from helixsim.profiles.sources.source import SourcedTables

LAYOUT = 1
"""Goes up when the same key would give other tables."""


def cache_folder() -> Path:
    """``helixsim/profiles`` in the user's folder for caches (XDG: ``~/.cache``)."""
    chosen = os.environ.get("XDG_CACHE_HOME", "")
    base = Path(chosen) if Path(chosen).is_absolute() else Path.home() / ".cache"
    return base / "helixsim" / "profiles"


class ProfileCache:
    """A folder of tables, one file each. What cannot be read or written is as if it was not there.

    Parameters
    ----------
    folder
        The folder; it is made when needed.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def load(self, key: str) -> SourcedTables | None:
        """The tables that were stored under a key; None without any, or if the file is damaged."""
        try:
            document = json.loads(self._file(key).read_text(encoding="utf-8"))
            if document["key"] != key:
                return None
            tables = tables_of_document(document["operators"])
            return SourcedTables(tables, document["kind"], str(document["source"]))
        except (OSError, ValueError, LookupError, TypeError, HelixError):
            return None

    def store(self, key: str, sourced: SourcedTables) -> None:
        """Store tables under a key; another process may do the same at the same time."""
        document = {
            "key": key,
            "kind": sourced.kind,
            "source": sourced.source,
            "operators": operators_document(sourced.tables),
        }
        with suppress(OSError, HelixError):
            self._folder.mkdir(parents=True, exist_ok=True)
            write_whole(self._file(key), json.dumps(document), overwrite=True)

    def _file(self, key: str) -> Path:
        digest = hashlib.sha256(f"{LAYOUT} {key}".encode()).hexdigest()
        return self._folder / f"{digest[:32]}.json"
