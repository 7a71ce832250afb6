"""Text files, compressed with gzip or not: lines in, whole text out."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from helixsim.errors import OutputError, TraceError

MAX_LINE_CHARS = 1_000_000
"""Above the length of any row of a trace; other files soon exceed it."""

_GZIP_MAGIC = b"\x1f\x8b"


@contextmanager
def open_lines(path: Path) -> Iterator[Iterator[str]]:
    """Open a text file, as :func:`open_text` does, and yield its lines.

    Raises
    ------
    TraceError
        As :func:`open_text`, and if a line is too long.
    """
    with open_text(path) as text:
        yield _lines(text, path)


@contextmanager
def open_text(path: Path) -> Iterator[io.TextIOWrapper]:
    """Open a text file, gzip or not by its first bytes.

    A byte-order mark and any kind of line end are removed. Bytes that are not UTF-8 become
    U+FFFD: they are refused in required columns, with their row, and tolerated in others.

    Raises
    ------
    TraceError
        If the file cannot be read, or is a damaged gzip.
    """
    try:
        with path.open("rb") as raw:
            packed = raw.peek(2)[:2] == _GZIP_MAGIC
            binary = cast("BinaryIO", gzip.GzipFile(fileobj=raw)) if packed else raw
            with io.TextIOWrapper(binary, encoding="utf-8-sig", errors="replace") as text:
                yield text
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise TraceError(f"the gzip file is cut short or damaged: {error}", file=path) from error
    except OSError as error:
        raise TraceError(f"cannot be read: {error.strerror or error}", file=path) from error


def _lines(text: io.TextIOWrapper, path: Path) -> Iterator[str]:
    number = 0
    while line := text.readline(MAX_LINE_CHARS):
        number += 1
        if len(line) == MAX_LINE_CHARS:
            raise TraceError(
                f"is longer than {MAX_LINE_CHARS} characters: no trace file",
                file=path,
                where=f"row {number}",
            )
        yield line.rstrip("\n")


def write_text(text: str, path: Path) -> None:
    """Write text, as gzip if the name ends in ``.gz``; equal text gives equal bytes.

    Raises
    ------
    OutputError
        If the file cannot be written.
    """
    data = text.encode()
    if path.suffix == ".gz":
        buffer = io.BytesIO()
        # Without a name and a time in its header, the file depends only on the text.
        with gzip.GzipFile(filename="", mode="wb", fileobj=buffer, mtime=0) as packed:
            packed.write(data)
        data = buffer.getvalue()
    try:
        path.write_bytes(data)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror or error}") from error
