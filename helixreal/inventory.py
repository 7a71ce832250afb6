"""Inventory files: the machines and the engines of the nodes of a real cluster."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from helixreal.engines import EMULATED, ENGINES
from helixsim.errors import ScenarioError
from helixsim.registry import UnknownNameError
from helixsim.yaml_files import Bytes, FileModel, did_you_mean, read_yaml, validate


def _known_engine(name: str) -> str:
    try:
        ENGINES.check(name)
    except UnknownNameError as error:
        raise ValueError(error.message) from error
    return name


def _joined(device: object) -> object:
    """A list of devices as one text, with commas."""
    if isinstance(device, list):
        if not device or not all(isinstance(name, str) and name for name in device):
            raise ValueError("must be the name of a device, or a list of names")
        return ",".join(device)
    return device


Device = Annotated[
    str,
    BeforeValidator(_joined, json_schema_input_type=str | list[str]),
    Field(pattern=r"^[A-Za-z0-9_:]+( *, *[A-Za-z0-9_:]+)*$"),
]
EngineName = Annotated[str, AfterValidator(_known_engine)]
HostPort = Annotated[
    str,
    Field(
        pattern=r"^(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_.-]+)(:[0-9]{1,5})?$",
        description="host or host:port; without a port, a free port is used.",
    ),
]
DEFAULT_PORT = 7000
DEFAULT_FRONT_END_PORT = 7001


class EngineFields(FileModel):
    """Fields that can be given for one node, or as defaults for all nodes."""

    engine: EngineName | None = None
    model: str | None = Field(default=None, description="Folder of the model on the machine.")
    device: Device | None = Field(
        default=None, description="Device, for example cpu or cuda:0; or a list of devices."
    )
    dtype: str | None = Field(
        default=None, description="Data type, for example float32 or bfloat16."
    )
    kv_memory: Bytes | None = Field(default=None, description="Memory for KV caches.")
    dummy_weights: bool | None = Field(default=None, description="Random weights, for load tests.")
    options: dict[str, Any] = Field(default_factory=dict, description="Options of the engine.")


class NodeFields(EngineFields):
    """One node."""

    address: HostPort = "127.0.0.1"


class InventoryFile(FileModel):
    """An inventory file."""

    schema_version: Literal[1] = Field(alias="schema")
    coordinator: HostPort = Field(description="host or host:port; the default port is 7000.")
    keys: str | None = Field(default=None, description="Folder of keys, see `helixreal keys`.")
    defaults: EngineFields = EngineFields()
    nodes: Annotated[dict[str, NodeFields], Field(min_length=1)]


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeEntry:
    """How the worker of a node is started; see :class:`helixreal.engines.engine.EngineSpec`.

    Attributes
    ----------
    address
        Address at which it listens, ``tcp://host:port``; port 0 takes a free port.
    """

    address: str = "tcp://127.0.0.1:0"
    engine: str = EMULATED
    model: str | None = None
    device: str = "cpu"
    dtype: str = "float32"
    kv_memory_bytes: int | None = None
    dummy_weights: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Inventory:
    """The machines of a real cluster.

    Attributes
    ----------
    coordinator
        Address at which the coordinator listens, ``tcp://host:port``.
    keys
        Folder of keys; None without keys.
    nodes
        Name of node -> how its worker is started.
    """

    coordinator: str
    keys: Path | None
    nodes: Mapping[str, NodeEntry]

    def node(self, name: str, file: Path) -> NodeEntry:
        """The entry of a node.

        Raises
        ------
        ScenarioError
            If the inventory has no such node.
        """
        if name not in self.nodes:
            raise ScenarioError(
                f"there is no node '{name}'; {did_you_mean(name, self.nodes)}",
                file=file,
                where="nodes",
            )
        return self.nodes[name]


def load_inventory(file: Path) -> Inventory:
    """Read an inventory file.

    Raises
    ------
    ScenarioError
        If it is not a valid inventory file.
    """
    found = validate(InventoryFile, read_yaml(file), file)
    return Inventory(
        coordinator=tcp_address(found.coordinator, DEFAULT_PORT),
        keys=None if found.keys is None else file.parent / found.keys,
        nodes={
            name: _entry(found.defaults, node, file.parent) for name, node in found.nodes.items()
        },
    )


def _entry(defaults: EngineFields, node: NodeFields, folder: Path) -> NodeEntry:
    def chosen(key: str, otherwise: Any) -> Any:  # noqa: ANN401  (of several types)
        for fields in (node, defaults):
            if (value := getattr(fields, key)) is not None:
                return value
        return otherwise

    kv_memory = chosen("kv_memory", None)
    return NodeEntry(
        address=tcp_address(node.address, 0),
        engine=chosen("engine", EMULATED),
        model=chosen("model", None),
        device=chosen("device", "cpu"),
        dtype=chosen("dtype", "float32"),
        kv_memory_bytes=None if kv_memory is None else int(kv_memory),
        dummy_weights=chosen("dummy_weights", False),
        options={**defaults.options, **node.options},
    )


def tcp_address(text: str, default_port: int) -> str:
    """``host`` or ``host:port`` as ``tcp://host:port``."""
    has_port = text.rpartition("]")[2].count(":") == 1
    return f"tcp://{text}" if has_port else f"tcp://{text}:{default_port}"
