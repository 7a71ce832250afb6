"""The files that a scenario names: their places in the scenario, and their contents."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from helixsim.errors import ScenarioError
from helixsim.llms.catalogue import shipped_configs
from helixsim.profiles.library import shipped_llms
from helixsim.traces.lengths import length_models
from helixsim.traces.patterns import ARRIVAL_PATTERNS
from helixsim.yaml_files import did_you_mean

_PACKAGE = Path(__file__).resolve().parents[1]


def shipped_folder() -> Path:
    """Folder of the shipped scenarios: in the package where it is installed, else beside it."""
    installed = _PACKAGE / "shipped_scenarios"
    return installed if installed.is_dir() else _PACKAGE.parent / "scenarios"


def shipped_scenarios() -> tuple[str, ...]:
    """Names of the scenarios that ship with helixsim, sorted."""
    return tuple(sorted(path.stem for path in shipped_folder().glob("*.yaml")))


def find_scenario(path: str | Path) -> Path:
    """Find the file of a scenario.

    Parameters
    ----------
    path
        A file, or the name of a shipped scenario.

    Raises
    ------
    ScenarioError
        If it is neither.
    """
    path = Path(path)
    if path.suffix in (".yaml", ".yml") or path.is_file():
        return path
    name, names = str(path), shipped_scenarios()
    if name not in names:
        raise ScenarioError(
            f"no scenario '{name}' ships with helixsim; {did_you_mean(name, names)} "
            "(for your own, give its file, ending in .yaml)"
        )
    return shipped_folder() / f"{name}.yaml"


KeyStep = str | int

_FILES: tuple[tuple[KeyStep, ...], ...] = (
    ("cluster", "file"),
    ("cluster", "generate"),
    ("placement", "file"),
    ("workload", "trace"),
    ("workload", "trace", "file"),
    ("workload", "arrivals", "slots", "file"),
    ("workload", "prompt_tokens", "file"),
    ("workload", "output_tokens", "file"),
    ("workload", "conversations", "turns", "file"),
)
"""Places at which a text is always the name of a file."""

_FILES_OF_CLASSES: tuple[tuple[KeyStep, ...], ...] = (
    ("prompt_tokens", "file"),
    ("output_tokens", "file"),
    ("conversations", "turns", "file"),
)
"""The same in each class of users."""

_ORDERED: tuple[tuple[KeyStep, ...], ...] = (
    ("cluster", "generate", "machines"),
    ("cluster", "generate", "regions"),
)
"""Places at which the order of keys counts: nodes are generated in it."""

POISSON = "poisson"
CONSTANT = "constant"


def is_yaml_name(text: str) -> bool:
    """Whether an LLM, a machine type or a scenario is named by its file."""
    return Path(text).suffix in (".yaml", ".yml")


def is_llm_name(text: str) -> bool:
    """Whether an LLM ships with helixsim, as an LLM file or a configuration."""
    return text in shipped_llms() or text in shipped_configs()


def is_lengths_name(text: str) -> bool:
    """Whether lengths are built in."""
    return text in length_models()


def is_arrivals_name(text: str) -> bool:
    """Whether arrivals are built in."""
    return text in (POISSON, CONSTANT) or text in ARRIVAL_PATTERNS


def named_files(document: object) -> Iterator[tuple[tuple[KeyStep, ...], str]]:
    """Find every name of a file in a scenario document, with its place."""
    for place in (*_FILES, *_places_in_classes(document)):
        if isinstance(name := _at(document, place), str):
            yield place, name
    if isinstance(name := _at(document, ("llm",)), str) and not is_llm_name(name):
        yield ("llm",), name
    if isinstance(name := _at(document, ("llm", "config")), str) and name not in shipped_configs():
        yield ("llm", "config"), name
    if isinstance(name := _at(document, ("engine",)), str) and is_yaml_name(name):
        yield ("engine",), name
    for key in ("machine_types", "gpus"):
        if isinstance(names := _at(document, (key,)), list):
            yield from (
                ((key, index), name) for index, name in enumerate(names) if isinstance(name, str)
            )
    lengths = _at(document, ("workload", "lengths"))
    if isinstance(lengths, str) and not is_lengths_name(lengths):
        yield ("workload", "lengths"), lengths
    tokenizer = _at(document, ("workload", "tokenizer"))
    if isinstance(tokenizer, str) and Path(tokenizer).suffix == ".json":
        yield ("workload", "tokenizer"), tokenizer
    arrivals = _at(document, ("workload", "arrivals"))
    if isinstance(arrivals, str) and not is_arrivals_name(arrivals):
        yield ("workload", "arrivals"), arrivals


def _places_in_classes(document: object) -> Iterator[tuple[KeyStep, ...]]:
    """Places of files in the classes of users."""
    classes = _at(document, ("workload", "classes"))
    for name in classes if isinstance(classes, Mapping) else ():
        for place in _FILES_OF_CLASSES:
            yield "workload", "classes", name, *place


def _at(document: object, place: tuple[KeyStep, ...]) -> object:
    for step in place:
        if not isinstance(document, Mapping) or step not in document:
            return None
        document = document[step]
    return document


def replace_at(document: object, place: tuple[KeyStep, ...], value: object) -> object:
    """Copy a document with another value at one existing place."""
    if not place:
        return value
    step, *rest = place
    if isinstance(document, Mapping):
        return {**document, step: replace_at(document[step], tuple(rest), value)}
    assert isinstance(document, list) and isinstance(step, int)
    return [
        replace_at(item, tuple(rest), value) if index == step else item
        for index, item in enumerate(document)
    ]


def moved_document(
    document: Mapping[str, object], from_folder: Path, to_folder: Path
) -> dict[str, Any]:
    """The document of a scenario file in one folder, for a file in another.

    Relative paths of files that it names lead to the same files.
    """
    moved: Any = dict(document)
    for place, name in list(named_files(moved)):
        if not Path(name).is_absolute():
            path = os.path.relpath((from_folder / name).resolve(), to_folder.resolve())
            moved = replace_at(moved, place, Path(path).as_posix())
    return cast("dict[str, Any]", moved)


def digest(document: Mapping[str, object], base_dir: Path, further: str = "") -> str:
    """SHA-256 of a document with the contents of the files that it names, as hex digits.

    Parameters
    ----------
    document
        The document.
    base_dir
        Folder to which names of files are relative.
    further
        What else the scenario depends on, as a text; empty for nothing.

    Raises
    ------
    ScenarioError
        If one of the files cannot be read.
    """
    content: object = document
    for place, name in list(named_files(document)):
        content = replace_at(content, place, {"sha256": _file_sha256(base_dir / name)})
    for place in _ORDERED:
        if isinstance(mapping := _at(content, place), Mapping):
            content = replace_at(content, place, _pairs(mapping))
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True) + further
    return hashlib.sha256(text.encode()).hexdigest()


def _pairs(value: object) -> object:
    """Mappings as lists of pairs, so that their order matters."""
    if isinstance(value, Mapping):
        return [[key, _pairs(inner)] for key, inner in value.items()]
    return value


def named_file(path: Path) -> Path:
    """The file that a path of a scenario means: an LLM may be named by its folder."""
    return path / "config.json" if path.is_dir() else path


def _file_sha256(path: Path) -> str:
    path = named_file(path)
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise ScenarioError(f"cannot be read: {error.strerror or error}", file=path) from error
