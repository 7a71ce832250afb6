"""Reads a ``config.json``."""

from __future__ import annotations

import json
from pathlib import Path

from helixsim.errors import InputError
from helixsim.llms.config_values import ConfigValues

MAX_FILE_BYTES = 16_000_000


def read_config_file(file: Path) -> ConfigValues:
    """The keys and values of a ``config.json``.

    Raises
    ------
    InputError
        If it cannot be read, is not JSON, or holds something else.
    """
    try:
        with file.open("rb") as stream:
            raw = stream.read(MAX_FILE_BYTES + 1)
        if len(raw) > MAX_FILE_BYTES:
            raise InputError(f"larger than {MAX_FILE_BYTES // 1_000_000} MB", file=file)
        config = json.loads(raw.decode("utf-8-sig"))
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror or error}", file=file) from error
    except UnicodeDecodeError as error:
        raise InputError("not UTF-8 text", file=file) from error
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise InputError(f"is not JSON: {error.msg}", file=file, where=where) from error
    except RecursionError as error:
        raise InputError("is nested too deep", file=file) from error
    if not isinstance(config, dict):
        raise InputError("must be a mapping: keys and values, as in a config.json", file=file)
    return ConfigValues(config, file)
