"""The library of measured kernels: the Python package ``aiconfigurator-core``, which is optional.

It holds times that its authors measured on some GPUs, of matrix products, attention, experts and
all-reduces, and answers for any size between them. Nothing else of helixsim imports it.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

from helixsim.errors import InputError
from helixsim.yaml_files import read_yaml

PACKAGE = "aiconfigurator-core"
INSTALL_HINT = "pip install 'helixsim[profiles]'"
SERVING_ENGINE = "vllm"
"""The engine whose kernels are asked for."""

_DATA = Path(__file__).parent / "data" / "aiconfigurator.yaml"

OperatorTime = tuple[str, float, float, str]
"""Name, milliseconds, energy, and whether it was measured (`silicon`) or reckoned from that."""


class Kernels(Protocol):
    """Operators of one LLM on one kind of machine, by their place in the LLM's two lists.

    A time is of all layers that have the operator, in milliseconds.
    """

    def evaluate_context_ops(
        self,
        indices: list[int],
        *,
        batch_size: int,
        s: int,
        prefix: int = 0,
    ) -> list[OperatorTime]:
        """Operators of prefills of `s` new tokens, with `prefix` tokens before them."""
        ...

    def evaluate_generation_ops(
        self, indices: list[int], *, batch_size: int, s: int
    ) -> list[OperatorTime]:
        """Operators of a batch of decodes with a context of `s` tokens."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelQuery:
    """What to ask for.

    Attributes
    ----------
    config
        ``config.json`` of the LLM.
    system
        The library's name of the GPU.
    num_gpus
        GPUs that share each layer.
    spread_experts
        Whether each GPU holds whole experts; None for an LLM without experts.
    matrices, experts, kv
        The library's names of number formats.
    """

    config: Mapping[str, Any]
    system: str
    num_gpus: int
    spread_experts: bool | None
    matrices: str
    experts: str | None
    kv: str


class KernelLibrary(Protocol):
    """A library of measured kernels."""

    def version(self) -> str | None:
        """Its version; None if it is not installed."""
        ...

    def engine_version(self, system: str) -> str | None:
        """Version of the serving engine whose kernels were measured on a GPU."""
        ...

    def compile(self, query: KernelQuery) -> Kernels:
        """The operators of an LLM.

        Raises
        ------
        InputError
            If the library has no times of them, in its words.
        """
        ...


class Aiconfigurator:
    """The library of ``aiconfigurator-core``; a :class:`KernelLibrary`."""

    def version(self) -> str | None:
        """Its version; None if it is not installed."""
        try:
            return version(PACKAGE)
        except PackageNotFoundError:
            return None

    def engine_version(self, system: str) -> str | None:
        """Version of the serving engine whose kernels were measured on a GPU."""
        _silence()
        from aiconfigurator_core.sdk import perf_database

        try:
            found = perf_database.resolve_query_version(system, SERVING_ENGINE, "current")
        except (AttributeError, LookupError, ValueError, OSError):
            return None  # this version of the package does not tell
        return str(found)

    def compile(self, query: KernelQuery) -> Kernels:
        """The operators of an LLM; the package reads its ``config.json`` from a folder."""
        _silence()
        from aiconfigurator_core.sdk.engine import EngineHandle

        spread = query.spread_experts
        with TemporaryDirectory(prefix="helixsim-llm-") as folder:
            (Path(folder) / "config.json").write_text(json.dumps(query.config), encoding="utf-8")
            try:
                handle = EngineHandle.compile(
                    folder,
                    query.system,
                    SERVING_ENGINE,
                    tp_size=query.num_gpus,
                    moe_tp_size=1 if spread in (None, True) else query.num_gpus,
                    moe_ep_size=query.num_gpus if spread else 1,
                    gemm_quant_mode=query.matrices,
                    moe_quant_mode=query.experts,
                    kvcache_quant_mode=query.kv,
                )
                handle.run_static(batch_size=1, isl=64, osl=2)
            except Exception as error:
                raise InputError(reason_of(error)) from error
        found: Kernels = handle
        return found


def reason_of(error: Exception) -> str:
    """The first line of what the package says of an error, shortened."""
    lines = str(error).strip().splitlines()
    text = lines[0] if lines else type(error).__name__
    return text if len(text) <= 200 else f"{text[:197]}..."


def _silence() -> None:
    """Keep the package's notes of missing optional data from the user."""
    logging.getLogger("aiconfigurator_core").setLevel(logging.ERROR)


@dataclass(frozen=True, slots=True)
class LibraryNames:
    """What the library calls GPUs and number formats."""

    systems: Mapping[str, str]
    formats: Mapping[str, Mapping[str, Any]]

    def system_of(self, gpu: str) -> str | None:
        """The library's name of a GPU that it has measured times of."""
        return self.systems.get(_plain(gpu))

    def modes(self, use: str, number_format: str) -> tuple[str, ...]:
        """Names of a number format for `matrices`, `experts` or `kv`; none if it has none."""
        found = self.formats[use].get(number_format, ())
        return (found,) if isinstance(found, str) else tuple(found)


@cache
def library_names() -> LibraryNames:
    """The names, from the shipped data."""
    data: Any = read_yaml(_DATA)
    systems = {_plain(gpu): system for system, gpus in data.pop("systems").items() for gpu in gpus}
    return LibraryNames(systems, data)


def _plain(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())
