"""Values changed from outside of a scenario file: ``--set run.duration="120 s"``."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, cast, get_origin

from helixsim.errors import ScenarioError
from helixsim.scenario.files import KeyStep, named_file, named_files, replace_at
from helixsim.scenario.plain import plain_data
from helixsim.scenario.spec import ScenarioSpec
from helixsim.yaml_files import is_model, keys_of, parse_yaml, read_yaml, types_at

_FILE_HEAD = ("schema", "kind")

_EXCLUDES: Mapping[tuple[str, ...], tuple[str, ...]] = {
    ("workload", "trace"): (
        "lengths",
        "prompt_tokens",
        "output_tokens",
        "arrivals",
        "requests_per_s",
        "mean_tokens_per_s",
        "classes",
    ),
    ("workload", "lengths"): ("trace", "prompt_tokens", "output_tokens"),
    ("workload", "prompt_tokens"): ("trace", "lengths", "mean_prompt_tokens"),
    ("workload", "output_tokens"): ("trace", "lengths", "mean_output_tokens"),
    ("workload", "arrivals"): ("trace",),
    ("workload", "requests_per_s"): ("trace", "mean_tokens_per_s"),
    ("workload", "mean_tokens_per_s"): ("trace", "requests_per_s"),
    ("workload", "classes"): ("trace",),
    ("cluster", "file"): ("generate", "source", "description", "coordinator", "nodes", "network"),
    ("cluster", "generate"): ("file", "source", "description", "coordinator", "nodes", "network"),
    ("placement", "file"): ("source", "description", "layers", "links"),
}
"""Key that is set -> keys beside it that it replaces, because they say the same in another way."""


@dataclass(frozen=True, slots=True)
class Override:
    """One value to set.

    Attributes
    ----------
    source
        The option, such as ``--set run.seed=1``; for messages.
    path
        Keys and indices that lead to it.
    value
        Plain data.
    """

    source: str
    path: tuple[str, ...]
    value: object

    @classmethod
    def parse(cls, text: str) -> Override:
        """Read ``PATH=VALUE``, where the value is YAML.

        Raises
        ------
        ScenarioError
            If the text has another form.
        """
        path, equals, value = text.partition("=")
        steps = tuple(path.strip().split("."))
        if not equals or not all(steps):
            raise ScenarioError(f"--set takes PATH=VALUE, such as run.seed=1, not '{text}'")
        return cls(f"--set {text}", steps, parse_yaml(value, f"--set {text}"))

    def error(self, message: str) -> ScenarioError:
        """An error that names the override."""
        return ScenarioError(message, file=self.source)


def overrides_of(changes: Mapping[str, object]) -> Iterator[Override]:
    """Changes of :meth:`Scenario.with_` as values to set."""
    for path, value in changes.items():
        yield from _overrides_at(tuple(path.split(".")), plain_data(value))


def _overrides_at(path: tuple[str, ...], value: object) -> Iterator[Override]:
    level = types_at(ScenarioSpec, path)
    if isinstance(value, dict) and len(level) == 1 and is_model(level[0]):
        for key, inner in value.items():
            yield from _overrides_at((*path, str(key)), inner)
    else:
        yield Override(f"with_({'.'.join(path)}=...)", path, value)


def apply_overrides(
    document: Mapping[str, object],
    overrides: Sequence[str | Override],
    base_dir: Path,
    *,
    first_dir: Path | None = None,
) -> dict[str, object]:
    """A copy of a scenario document with values changed.

    Parameters
    ----------
    document
        The content of the scenario file.
    overrides
        Values to set, or texts of the form ``PATH=VALUE``, applied in order.
    base_dir
        Folder of the scenario file.
    first_dir
        File names in overrides are relative to this folder if it has such a file, else to
        `base_dir`; the current directory if not given.

    Raises
    ------
    ScenarioError
        If an override is malformed or its path is unknown.
    """
    result = copy.deepcopy(dict(document))
    for each in overrides:
        override = Override.parse(each) if isinstance(each, str) else each
        steps = _steps(override)
        _take_in(result, override, base_dir)
        _set(result, override, steps)
        result = _with_files_found(result, steps, first_dir or Path())
    return result


def _steps(override: Override) -> list[KeyStep]:
    """Keys and indices of a path; a path that no scenario has is refused."""
    seen: list[KeyStep] = []
    for step in override.path:
        level = types_at(ScenarioSpec, seen)
        keys = {str(key) for found in level if is_model(found) for key in keys_of(found)}
        if step in keys:
            seen.append(step)
        elif any(get_origin(found) is tuple for found in level) and step.isdecimal():
            seen.append(int(step))
        elif any(get_origin(found) is dict for found in level):
            seen.append(step)
        else:
            raise override.error(_unknown(override.path, tuple(map(str, seen)), sorted(keys)))
    return seen


def _unknown(path: tuple[str, ...], seen: tuple[str, ...], keys: list[str]) -> str:
    """Message for an unknown path, with a hint at a similar key there or elsewhere."""
    elsewhere = {known.rpartition(".")[2]: known for known in _all_paths(ScenarioSpec)}
    if path[-1] in elsewhere:
        hint = f"did you mean '{elsewhere[path[-1]]}'?"
    elif close := difflib.get_close_matches(path[len(seen)], keys, n=1):
        hint = f"did you mean '{'.'.join((*seen, *close))}'?"
    elif close := difflib.get_close_matches(path[-1], elsewhere, n=1):
        hint = f"did you mean '{elsewhere[close[0]]}'?"
    elif keys:
        hint = f"{'.'.join(seen) or 'it'} may have {', '.join(keys)}"
    else:
        hint = f"{'.'.join(seen)} is a single value"
    return f"a scenario has no {'.'.join(path)}; {hint}"


def _all_paths(model_type: object, prefix: str = "") -> Iterator[str]:
    for found in types_at(model_type, ()):
        if is_model(found):
            for key, inner in keys_of(found).items():
                yield f"{prefix}{key}"
                yield from _all_paths(inner, f"{prefix}{key}.")


def _take_in(document: dict[str, object], override: Override, base_dir: Path) -> None:
    """Where a path leads into a section in another file, include the section first.

    An LLM by its name gets keys.
    """
    match override.path:
        case ("placement", "file" | "allow_overcommitted_layers") | (
            "cluster",
            "file" | "generate",
        ):
            pass
        case ("cluster", "generate", _, *_):
            section = document.get("cluster")
            if isinstance(section, dict) and isinstance(name := section.get("generate"), str):
                section["generate"] = _body(base_dir / name)
        case ("workload", "trace", _, *_):
            section = document.get("workload")
            if isinstance(section, dict) and isinstance(name := section.get("trace"), str):
                section["trace"] = {"file": name}
        case ("llm", _, *_):
            if isinstance(name := document.get("llm"), str):
                document["llm"] = {"config": name}
        case ("placement" | "cluster" as key, _, *_):
            section = document.get(key)
            if isinstance(section, dict) and isinstance(name := section.pop("file", None), str):
                document[key] = _body(base_dir / name) | section


def _body(file: Path) -> dict[str, object]:
    """The content of a file without its head."""
    content = read_yaml(file)
    if not isinstance(content, dict):
        raise ScenarioError("this file holds no keys and values", file=file)
    return {key: value for key, value in content.items() if key not in _FILE_HEAD}


def _set(document: dict[str, object], override: Override, steps: Sequence[KeyStep]) -> None:
    holder: Any = document
    for depth, (step, after) in enumerate(pairwise(steps), start=1):
        inner = holder.get(step) if isinstance(holder, dict) else holder[step]
        if isinstance(after, int):
            length = len(inner) if isinstance(inner, list) else 0
            if after >= length:
                place = ".".join(map(str, steps[:depth]))
                raise override.error(f"{place} has {length} entries, counted from 0")
        elif not isinstance(inner, dict):
            inner = holder[step] = {}
        holder = inner
    for other in _EXCLUDES.get(override.path, ()):
        holder.pop(other, None)
    holder[steps[-1]] = copy.deepcopy(override.value)


def _with_files_found(
    document: dict[str, object], steps: Sequence[KeyStep], folder: Path
) -> dict[str, object]:
    """Make the names of files in a changed value absolute if the folder has them."""
    result: Any = document
    for place, name in list(named_files(document)):
        if place[: len(steps)] == tuple(steps) and named_file(folder / name).is_file():
            result = replace_at(result, place, str((folder / name).absolute()))
    return cast("dict[str, object]", result)
