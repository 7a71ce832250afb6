"""Write files completely or not at all, and overwrite existing files only on request."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from helixsim.errors import OutputError


def check_output(path: Path, *, overwrite: bool) -> None:
    """Refuse an output path early, on the same conditions as :func:`write_whole`.

    Raises
    ------
    OutputError
        If the file exists and must not be overwritten, or its folder does not exist.
    """
    if path.exists() and not path.is_file():
        raise OutputError(f"{path}: is no regular file; name another")
    if path.exists() and not overwrite:
        raise OutputError(f"{path}: exists already; name another file, or add --force")
    if not path.absolute().parent.is_dir():
        raise OutputError(f"{path}: there is no folder {path.parent}; make it first")


def write_whole(path: Path, content: str | bytes, *, overwrite: bool = False) -> None:
    """Write a file under a temporary name, then rename it in one step.

    Parameters
    ----------
    path
        The file.
    content
        Text, which is written as UTF-8, or bytes.
    overwrite
        Whether to replace an existing file.

    Raises
    ------
    OutputError
        As :func:`check_output`, or if the file cannot be written. An existing file stays.
    """
    content = content.encode() if isinstance(content, str) else content
    check_output(path, overwrite=overwrite)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("xb") as stream:
            stream.write(content)
        temporary.replace(path)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
