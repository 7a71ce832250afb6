"""Weights of layers: from safetensors files, or random."""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import torch
from safetensors import SafetensorError, safe_open

from helixreal.engines.sharding import Part
from helixsim.errors import InputError

_INDEX = "model.safetensors.index.json"
_WHOLE = "model.safetensors"


class Weights(Protocol):
    """A source of tensors."""

    def take(self, name: str, shape: tuple[int, ...], part: Part | None = None) -> torch.Tensor:
        """A tensor by name and shape, on the device and with the data type of the engine.

        With `part`, only this part of it.
        """
        ...


class Checkpoint:
    """Tensors in one or several safetensors files; a context manager that keeps them open.

    Parameters
    ----------
    model
        Folder of the model. Tensors are read when they are taken.
    device, dtype
        Device and data type of the tensors.

    Raises
    ------
    InputError
        If there are no such files or, in :meth:`take`, no tensor of that name and shape.
    """

    def __init__(self, model: Path, device: torch.device, dtype: torch.dtype) -> None:
        self._model = model
        self._device = device
        self._dtype = dtype
        self._files = self._read_index()
        self._open: dict[str, Any] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._open.clear()
        self._stack.close()

    def take(self, name: str, shape: tuple[int, ...], part: Part | None = None) -> torch.Tensor:
        """Read one tensor, or a part of it."""
        shard = _WHOLE if self._files is None else self._files.get(name)
        if shard is None:
            raise InputError(f"names no file for {name}", file=self._model / _INDEX)
        file = self._model / shard
        try:
            handle = self._handle(shard)
            stored = handle.get_slice(name)
            found = tuple(stored.get_shape())
            if found != shape:
                raise InputError(
                    f"{name} has the shape {found}, but by config.json it has {shape}", file=file
                )
            tensor: torch.Tensor = (
                handle.get_tensor(name) if part is None else stored[_index(shape, part)]
            )
        except (SafetensorError, OSError) as error:
            raise InputError(f"{name} cannot be read: {error}", file=file) from error
        return tensor.to(device=self._device, dtype=self._dtype)

    def _handle(self, shard: str) -> Any:  # noqa: ANN401  (safetensors has no types)
        if shard not in self._open:
            handle = safe_open(str(self._model / shard), framework="pt")
            self._open[shard] = self._stack.enter_context(handle)
        return self._open[shard]

    def _read_index(self) -> dict[str, str] | None:
        """Tensor -> file; None if there is a single file."""
        index = self._model / _INDEX
        if not index.is_file():
            if not (self._model / _WHOLE).is_file():
                raise InputError(f"there is neither {_WHOLE} nor {_INDEX}", file=self._model)
            return None
        try:
            files = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise InputError(f"has no usable weight_map: {error}", file=index) from error
        if not isinstance(files, dict):
            raise InputError("weight_map should hold keys and values", file=index)
        return files


class DummyWeights:
    """Random weights; a name has the same weights in every engine.

    Parameters
    ----------
    device, dtype
        Device and data type of the tensors.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self._device = device
        self._dtype = dtype

    def take(self, name: str, shape: tuple[int, ...], part: Part | None = None) -> torch.Tensor:
        """A random matrix that preserves the norm of its input on average; ones for norms."""
        if "norm" in name:
            return torch.ones(shape, device=self._device, dtype=self._dtype)
        generator = torch.Generator(self._device).manual_seed(_seed(name.encode()))
        values = torch.randn(
            shape, device=self._device, dtype=torch.float32, generator=generator
        ).mul_(shape[-1] ** -0.5)
        return values.to(self._dtype)[_index(shape, part)].contiguous()


def _index(shape: tuple[int, ...], part: Part | None) -> tuple[slice, ...]:
    """The index of a part of a tensor."""
    index = [slice(None)] * len(shape)
    if part is not None:
        index[part.dimension] = slice(*part.bounds(shape))
    return tuple(index)


def _seed(name: Iterable[int]) -> int:
    seed = 0
    for byte in name:
        seed = (seed * 257 + byte) % (2**61 - 1)
    return seed
