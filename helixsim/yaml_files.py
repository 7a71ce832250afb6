"""Files that users write: from YAML to a validated model, with the place of every error.

Also the reverse: plain data as YAML that reads back the same.

The dialect is the part of YAML 1.2 that configuration needs. ``no`` and ``on`` are text, ``010``
is ten, ``1e3`` is a number, dates are text, and duplicate keys are refused.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import UnionType
from typing import Annotated, TypeGuard, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    ValidationError,
    ValidationInfo,
    WithJsonSchema,
)
from pydantic_core import ErrorDetails, PydanticCustomError

from helixsim.errors import InputError, ScenarioError
from helixsim.units import QUANTITY_PATTERN, Dimension, parse_quantity

MAX_FILE_BYTES = 16_000_000
MAX_DEPTH = 50
MAX_EXPANSION = 10
"""Limit of the factor by which aliases may enlarge a file."""
MAX_ERRORS_SHOWN = 8
MAX_NAMES_SHOWN = 20

Model = TypeVar("Model", bound=BaseModel)

_FROM_FILE = {"from": "file"}
"""Context of validation where quantities need their units."""

_MERGE = "tag:yaml.org,2002:merge"


# -- reading ---------------------------------------------------------------------------------


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Safe YAML with the plain scalars of YAML 1.2's core schema."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012
    _depth = 0

    # Called before and after each value. libyaml's binding recurses in C, without another limit
    # of the depth.
    def descend_resolver(self, parent: yaml.Node | None, _index: object) -> None:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            mark = None if parent is None else parent.start_mark
            raise yaml.MarkedYAMLError(
                problem=f"nested more than {MAX_DEPTH} deep", problem_mark=mark
            )

    def ascend_resolver(self) -> None:
        self._depth -= 1

    # With nested merges, PyYAML leaves duplicate keys, and its versions differ in their order.
    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Insert merged keys into a mapping; its own keys and earlier sources take precedence."""
        pairs: dict[object, tuple[yaml.Node, yaml.Node]] = {}
        own = []
        for key_node, value_node in node.value:
            if key_node.tag != _MERGE:
                own.append((key_node, value_node))
                continue
            is_list = isinstance(value_node, yaml.SequenceNode)
            for source in value_node.value if is_list else [value_node]:
                if not isinstance(source, yaml.MappingNode):
                    raise yaml.MarkedYAMLError(
                        problem=f"expected a mapping to merge, but found a {source.id}",
                        problem_mark=source.start_mark,
                    )
                self.flatten_mapping(source)
                for pair in source.value:
                    pairs.setdefault(_key_of(pair[0]), pair)
        pairs |= {_key_of(pair[0]): pair for pair in own}
        node.value = list(pairs.values())


def _key_of(node: yaml.Node) -> object:
    """The identity of a key of a mapping; keys that are not plain values are all different."""
    return (node.tag, node.value) if isinstance(node, yaml.ScalarNode) else node


class _Dumper(getattr(yaml, "CSafeDumper", yaml.SafeDumper)):  # type: ignore[misc]
    """Quotes texts that the loader, or YAML 1.1, would read as another type."""

    def ignore_aliases(self, _data: object) -> bool:
        return True


def _construct_int(loader: _Loader, node: yaml.ScalarNode) -> int:
    return int(loader.construct_scalar(node))


def _construct_float(loader: _Loader, node: yaml.ScalarNode) -> float:
    return float(
        loader.construct_scalar(node).lower().replace(".inf", "inf").replace(".nan", "nan")
    )


for _tag, _pattern, _first in (
    ("merge", r"<<", "<"),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9]+", "-+0123456789"),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?"
        r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
    ),
):
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(
            f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), list(_first)
        )
_Loader.add_constructor("tag:yaml.org,2002:int", _construct_int)
_Loader.add_constructor("tag:yaml.org,2002:float", _construct_float)


def read_yaml(path: str | Path) -> object:
    """Read one YAML document.

    Parameters
    ----------
    path
        The file.

    Returns
    -------
    object
        Plain dicts, lists, texts, numbers; None for an empty file.

    Raises
    ------
    ScenarioError
        If the file cannot be read, is too large, is not UTF-8 or not YAML, has a duplicate key,
        or grows too much by aliases. `where` gives line and column if known.
    """
    return parse_yaml(_read_text(Path(path)), path)


def parse_yaml(text: str, source: str | Path) -> object:
    """Parse one YAML document, as :func:`read_yaml` does; `source` names it in messages."""
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _Checker(source).check(node)
        return loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        where = _position(error.problem_mark or error.context_mark)
        problem = error.problem or error.context or "cannot be read"
        raise ScenarioError(f"not valid YAML: {problem}", file=source, where=where) from error
    except yaml.YAMLError as error:
        raise ScenarioError(f"not valid YAML: {error}", file=source) from error
    except (ValueError, RecursionError) as error:
        raise ScenarioError(f"not usable YAML: {error}", file=source) from error


def _read_text(path: Path) -> str:
    try:
        if not path.exists():
            raise ScenarioError("there is no such file", file=path)
        if not path.is_file():
            raise ScenarioError("this is no regular file", file=path)
        with path.open("rb") as stream:
            raw = stream.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ScenarioError(f"cannot be read: {error.strerror}", file=path) from error
    if len(raw) > MAX_FILE_BYTES:
        raise ScenarioError(f"larger than {MAX_FILE_BYTES // 1_000_000} MB", file=path)
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ScenarioError(
            "not UTF-8 text; save the file as UTF-8", file=path, where=f"line {line}"
        ) from error


def _position(mark: yaml.Mark | None) -> str | None:
    return None if mark is None else f"line {mark.line + 1}, column {mark.column + 1}"


class _Checker:
    """Refuses documents that can be parsed but cannot be used safely."""

    def __init__(self, path: str | Path) -> None:
        self._path = path
        self._sizes: dict[int, int] = {}
        self._open: set[int] = set()

    def check(self, root: yaml.Node) -> None:
        expanded = self._size(root)
        if expanded > MAX_EXPANSION * len(self._sizes) + 1000:
            raise ScenarioError(
                f"aliases make this file more than {MAX_EXPANSION} times as large as it is "
                "written; write it out",
                file=self._path,
            )

    def _size(self, node: yaml.Node) -> int:
        """Count the values below a node, values behind aliases once for each alias."""
        if id(node) in self._open:
            raise self._error(node, "this value contains itself")
        if id(node) not in self._sizes:
            self._open.add(id(node))
            self._sizes[id(node)] = 1 + sum(self._size(child) for child in self._children(node))
            self._open.remove(id(node))
        return self._sizes[id(node)]

    def _children(self, node: yaml.Node) -> list[yaml.Node]:
        if isinstance(node, yaml.SequenceNode):
            return list(node.value)
        if isinstance(node, yaml.MappingNode):
            self._check_keys(node)
            return [value for _, value in node.value]
        return []

    def _check_keys(self, node: yaml.MappingNode) -> None:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise self._error(key, "a key must be plain text")
            if key.value in seen:
                raise self._error(key, f"duplicate key '{key.value}'")
            seen.add(key.value)

    def _error(self, node: yaml.Node, message: str) -> ScenarioError:
        return ScenarioError(message, file=self._path, where=_position(node.start_mark))


# -- writing ---------------------------------------------------------------------------------


def yaml_text(data: object) -> str:
    """Write plain data as YAML that :func:`read_yaml` reads back as the same data.

    Keys keep their order. Lists and mappings of plain values are written on one line.
    """
    return yaml.dump(
        data,
        Dumper=_Dumper,
        default_flow_style=None,
        sort_keys=False,
        allow_unicode=True,
        width=100,
    )


# -- validating ------------------------------------------------------------------------------


class FileModel(BaseModel):
    """Base of all models of files: frozen, exact types, no unknown keys, finite numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


def validate(model_type: type[Model], data: object, file: str | Path | None) -> Model:
    """Validate the contents of a file against a model.

    Raises
    ------
    ScenarioError
        With up to eight errors, each with its place in the file, such as
        ``llms.llama2-70b.prefill.tokens[3]``.
    """
    if not isinstance(data, dict):
        kind = "is empty" if data is None else f"holds {_shown(data)}"
        raise ScenarioError(f"this file {kind}; it should hold keys and values", file=file)
    try:
        return model_type.model_validate(data, context=_FROM_FILE, by_alias=True, by_name=False)
    except ValidationError as error:
        raise scenario_error(error, model_type, data, file) from error


def located_error(where: str, message: str) -> PydanticCustomError:
    """An error that validators raise, at a place below the validated value."""
    return PydanticCustomError("located", "{message}", {"message": message, "where": where})


def scenario_error(
    error: ValidationError, model_type: type[BaseModel], data: object, file: str | Path | None
) -> ScenarioError:
    """Pydantic's errors, with messages and places in terms of the file."""
    found = []
    for details in error.errors(include_url=False):
        if _is_long_enough(details):
            continue  # its mistakes are told one by one
        path = _path_in(data, details)
        context = details.get("ctx", {})
        where = _join(path, context.get("where", "") if details["type"] == "located" else "")
        found.append((where, _message(details, model_type, path)))
    return mistakes_error(found, file)


def mistakes_error(found: Sequence[tuple[str, str]], file: str | Path | None) -> ScenarioError:
    """One error for one or more mistakes, each a place in the file and a message."""
    if len(found) == 1:
        return ScenarioError(found[0][1], file=file, where=found[0][0] or None)
    lines = [f"{where}: {message}" if where else message for where, message in found]
    if len(lines) > MAX_ERRORS_SHOWN:
        lines[MAX_ERRORS_SHOWN:] = [f"and {len(lines) - MAX_ERRORS_SHOWN} more"]
    return ScenarioError(f"{len(found)} mistakes\n  " + "\n  ".join(lines), file=file)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: the closest known name, or all known names."""
    known = list(known)
    if close := difflib.get_close_matches(name, known, n=1):
        return f"did you mean '{close[0]}'?"
    if len(known) > MAX_NAMES_SHOWN:
        known[MAX_NAMES_SHOWN - 1 :] = [f"and {len(known) - MAX_NAMES_SHOWN + 1} more"]
    return f"known are {', '.join(known)}" if known else "none are known"


def _is_long_enough(details: ErrorDetails) -> bool:
    """Whether a list was found too short only because none of its entries is valid."""
    value = details["input"]
    is_short = details["type"] == "too_short" and isinstance(value, list | tuple)
    return is_short and len(value) >= details["ctx"]["min_length"]


def _path_in(data: object, details: ErrorDetails) -> list[str | int]:
    """Pydantic's location without the steps that are not in the file, such as union tags."""
    path: list[str | int] = []
    for step in details["loc"]:
        try:
            data = data[step]  # type: ignore[index]  # (what cannot be indexed is left out)
        except (TypeError, LookupError):
            continue
        path.append(step)
    return [*path, details["loc"][-1]] if details["type"] == "missing" else path


def _join(path: Sequence[str | int], where: str) -> str:
    text = ""
    for step in [*path, where] if where else path:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else step
    return text


def _message(details: ErrorDetails, model_type: type[BaseModel], path: list[str | int]) -> str:
    value, message = details["input"], details["msg"]
    match details["type"]:
        case "missing":
            return "this key is missing"
        case "extra_forbidden":
            known = _keys_at(model_type, path[:-1])
            if path[-1] in known:
                return "this key does not go with the others here"
            return f"unknown key; {did_you_mean(str(path[-1]), known)}"
        case "string_pattern_mismatch":
            return f"{_shown(value)} does not match {details['ctx']['pattern']}"
        case "model_type" | "dict_type":
            message = "Input should hold keys and values"
        case "tuple_type":
            message = "Input should be a list"
        case "too_short" | "too_long":
            message = _length_message(details)
    if message.startswith("Input should"):
        return f"{message.removeprefix('Input ')}, not {_shown(value)}"
    return message.removeprefix("Value error, ")


def _length_message(details: ErrorDetails) -> str:
    context = details["ctx"]
    is_short = details["type"] == "too_short"
    count = context["min_length" if is_short else "max_length"]
    limit = f"at {'least' if is_short else 'most'} {count:,} {'entry' if count == 1 else 'entries'}"
    return f"should have {limit}, not {context['actual_length'] or 'none'}"


def _shown(value: object) -> str:
    if isinstance(value, dict):
        return "keys and values"
    if isinstance(value, list):
        return "a list"
    text = "nothing" if value is None else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def types_at(annotation: object, path: Sequence[str | int]) -> list[object]:
    """Types of the values at a place in a file: models, mappings, lists, plain values."""
    level = list(_alternatives(annotation))
    for step in path:
        level = [inner for outer in level for inner in _alternatives(_inside(outer, step))]
    return level


def _keys_at(annotation: object, path: Sequence[str | int]) -> list[str]:
    """The keys that a file may have at a place, sorted."""
    level = types_at(annotation, path)
    return sorted({str(key) for found in level if is_model(found) for key in keys_of(found)})


def is_model(annotation: object) -> TypeGuard[type[BaseModel]]:
    """Whether a type is a model of keys and values."""
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def keys_of(model_type: type[BaseModel]) -> dict[str | int, object]:
    """Key in the file -> type of its value."""
    fields = model_type.model_fields
    return {field.alias or name: field.annotation for name, field in fields.items()}


def _alternatives(annotation: object) -> Iterator[object]:
    """Look through Annotated, Union and Optional."""
    origin = get_origin(annotation)
    if origin is Annotated:
        yield from _alternatives(get_args(annotation)[0])
    elif origin in (Union, UnionType):
        for argument in get_args(annotation):
            yield from _alternatives(argument)
    elif annotation is not None:
        yield annotation


def _inside(annotation: object, step: str | int) -> object:
    """The type inside a model, a mapping or a list at one step, or None."""
    if is_model(annotation):
        return keys_of(annotation).get(step)
    arguments = get_args(annotation)
    if not arguments:
        return None
    return arguments[0] if isinstance(step, int) else arguments[-1]


# -- quantities ------------------------------------------------------------------------------


def _quantity_parser(dimension: Dimension) -> Callable[[object, ValidationInfo], object]:
    def parse(value: object, info: ValidationInfo) -> object:
        if not isinstance(value, str):
            if info.context != _FROM_FILE:
                return value  # given in Python, in SI units
            raise PydanticCustomError(
                "quantity",
                "{message}",
                {
                    "message": f"{_shown(value)} has no unit; write a number and a unit, such "
                    f"as '{dimension.example}'"
                },
            )
        try:
            return parse_quantity(value, dimension)
        except InputError as error:
            raise PydanticCustomError("quantity", "{message}", {"message": str(error)}) from error

    return parse


def _quantity_schema(dimension: Dimension) -> WithJsonSchema:
    return WithJsonSchema(
        {"type": "string", "pattern": QUANTITY_PATTERN, "examples": [dimension.example]}
    )


Seconds = Annotated[
    float, BeforeValidator(_quantity_parser(Dimension.TIME)), _quantity_schema(Dimension.TIME)
]
"""A time, written with its unit: ``1 ms``."""

Bytes = Annotated[
    float, BeforeValidator(_quantity_parser(Dimension.DATA)), _quantity_schema(Dimension.DATA)
]
"""An amount of data, written with its unit: ``24 GB``."""

BytesPerSecond = Annotated[
    float,
    BeforeValidator(_quantity_parser(Dimension.BANDWIDTH)),
    _quantity_schema(Dimension.BANDWIDTH),
]
"""A bandwidth, written with its unit: ``10 Gbit/s``."""
