"""Count the tokens of texts, with a tokenizer in the format of Hugging Face."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from helixsim.errors import InputError

_FILE = "tokenizer.json"


def token_counter(name: str) -> Callable[[str], int]:
    """A function that counts the tokens of a text, without special tokens.

    Nothing is downloaded, so that a run depends on nothing outside of this machine.

    Parameters
    ----------
    name
        A ``tokenizer.json``, or the name of a model in the local cache of Hugging Face.

    Raises
    ------
    InputError
        If there is no such tokenizer, or the package `tokenizers` is not installed.
    """
    file = _tokenizer_file(name)
    try:
        import tokenizers
    except ImportError as error:
        raise InputError(
            f"tokenizer '{name}' needs the package tokenizers: pip install tokenizers; without a "
            "tokenizer, a token is taken as 4 characters"
        ) from error
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # tokenizers raises no special class
        raise InputError(f"is no tokenizer: {error}", file=file) from error

    def count(text: str) -> int:
        return len(tokenizer.encode(text, add_special_tokens=False).ids)

    return count


def _tokenizer_file(name: str) -> Path:
    path = Path(name)
    if path.is_file():
        return path
    cache = _cache() / ("models--" + name.replace("/", "--")) / "snapshots"
    if found := sorted(cache.glob(f"*/{_FILE}")):
        return found[0]
    raise InputError(
        f"there is no tokenizer '{name}': it should be a {_FILE}, or the name of a model in "
        f"{_cache()}"
    )


def _cache() -> Path:
    """Folder of the local cache, as Hugging Face's packages have it."""
    if folder := os.environ.get("HF_HUB_CACHE"):
        return Path(folder)
    home = os.environ.get("HF_HOME")
    return (Path(home) if home else Path.home() / ".cache" / "huggingface") / "hub"
