"""The vLLM engine: layers on vLLM's kernels, loader and KV cache sizing."""

from __future__ import annotations

import json
import logging
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from helixreal.engines.engine import Buffer, EngineSpec, Payload, Row
from helixreal.engines.grammar import Grammars
from helixsim.control.prefix_cache import PrefixCache
from helixsim.errors import InputError

if TYPE_CHECKING:
    import torch

    from helixreal.engines.vllm_stage import VllmStage

_ENVIRONMENT = {
    # Layers are called directly, so they must be in this process.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
}
# On a machine with other load, threads that wait for each other cost more than they save.
_CPU_ENVIRONMENT = {"OMP_NUM_THREADS": "1"}

_OPTIONS = ("gpu_memory_utilization", "max_num_seqs", "wire")
_WIRES = ("both", "sum")
_VALUE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_CPU_BLOCK_TOKENS = 32
_CPU_KV_BYTES = 4 << 30
"""Default memory for KV caches on a CPU, limited to half of the free memory. vLLM writes to all of
it when it starts."""


class VllmEngine:
    """Runs layers of a Llama-type model; see :class:`~helixreal.engines.engine.Engine`.

    Hidden states are a pair of tensors, each of shape (tokens, hidden size): the output of the
    last layer, and the residual stream to which vLLM adds it within the next norm. In 16 bits the
    sum is rounded: if the sum is sent, tokens may differ from a run in one process.

    Parameters
    ----------
    spec
        Layers, model and device. On a CPU, `block_tokens` is rounded up to a multiple of 32. The
        `options` are:

        wire
            Format of hidden states in messages: ``both`` tensors, or their ``sum`` in half the
            bytes. By default ``sum`` for float32, where it is exact, otherwise ``both``.
        gpu_memory_utilization
            Share of the device's memory that vLLM may use, if `kv_memory_bytes` is None.
        max_num_seqs
            Limit of the requests of one pass; larger batches are split. Default 256.

    Raises
    ------
    InputError
        If vLLM is not installed, or it cannot use the model, the device or the settings.
    """

    def __init__(self, spec: EngineSpec) -> None:
        _check(spec)
        self._spec = spec
        self._wire = _wire(spec)
        self._max_rows = _max_rows(spec)
        self._grammars = Grammars(spec.model)
        self._stage = _start(spec, self._max_rows)
        self.block_tokens = self._stage.block_tokens
        self.kv_blocks = self._stage.num_blocks - 1
        self.kv = PrefixCache(
            self.kv_blocks, self.block_tokens, first_block=1, clear=self._stage.clear
        )
        self._buffer_bytes_per_token = self._stage.hidden_size * _VALUE_BYTES[spec.dtype]
        self._num_buffers = 2 if self._wire == "both" else 1
        self.wire_bytes_per_token = self._num_buffers * self._buffer_bytes_per_token

    def run(self, rows: Sequence[Row], start_layer: int, end_layer: int) -> list[Payload]:
        """Run the layers ``[start_layer, end_layer)`` on a batch whose KV blocks are allocated."""
        import torch

        payloads: list[Payload] = [None] * len(rows)
        with torch.inference_mode():
            # Parts keep the order: a row may read blocks that one before it writes.
            for first in range(0, len(rows), self._max_rows):
                # Some of vLLM's attention back ends need decodes before longer rows.
                part = sorted(
                    range(first, min(first + self._max_rows, len(rows))),
                    key=lambda index: rows[index].num_tokens > 1,
                )
                done = self._run([rows[index] for index in part], start_layer, end_layer)
                for index, payload in zip(part, done, strict=True):
                    payloads[index] = payload
        return payloads

    def _run(self, rows: Sequence[Row], start_layer: int, end_layer: int) -> list[Payload]:
        from helixreal.engines.vllm_stage import Span

        spans = [Span(row.position, row.num_tokens, self.kv.table(row.request)) for row in rows]
        batch = self._stage.describe(spans)
        hidden, residual = self._entering(rows, start_layer)
        hidden, residual = self._stage.run_layers(batch, hidden, residual, start_layer, end_layer)
        if end_layer == self._spec.num_layers:
            return self._tokens(hidden, residual, rows)
        counts = [row.num_tokens for row in rows]
        return list(zip(hidden.split(counts), residual.split(counts), strict=True))

    def _entering(
        self, rows: Sequence[Row], start_layer: int
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Input of the first layer of a pass; before layer 0 there is no residual."""
        if start_layer == 0:
            return self._stage.embed([token for row in rows for token in row.payload]), None
        import torch

        # A copy even for one row: vLLM's norms write into their inputs.
        return (
            torch.cat([row.payload[0] for row in rows]),
            torch.cat([row.payload[1] for row in rows]),
        )

    def _tokens(
        self, hidden: torch.Tensor, residual: torch.Tensor, rows: Sequence[Row]
    ) -> list[int | None]:
        """Sample a token after the last layer for each row that wants one."""
        from helixreal.engines.sampling import sample_rows

        return sample_rows(
            rows,
            lambda positions: self._stage.logits(hidden[positions], residual[positions]),
            self._grammars,
        )

    def pack(self, payloads: Sequence[Payload]) -> list[Buffer]:
        """Serialize hidden states of rows: buffers of outputs and of residuals, or one of sums."""
        import torch

        with torch.inference_mode():
            parts = [torch.cat([payload[part] for payload in payloads]) for part in range(2)]
            if self._wire == "sum":
                parts = [parts[0] + parts[1]]
            return [
                memoryview(part.contiguous().cpu().view(torch.uint8).numpy()).cast("B")
                for part in parts
            ]

    def unpack(self, buffers: Sequence[Buffer], num_tokens: Sequence[int]) -> list[Payload]:
        """The inverse of `pack`, given the number of tokens of each row.

        Raises
        ------
        ValueError
            If the number or the size of the buffers does not match the tokens.
        """
        import torch

        counts = list(num_tokens)
        if len(buffers) != self._num_buffers:
            raise ValueError(f"{len(buffers)} buffers of hidden states, not {self._num_buffers}")
        expected = sum(counts) * self._buffer_bytes_per_token
        for buffer in buffers:
            if memoryview(buffer).nbytes != expected or min(counts, default=1) < 1:
                raise ValueError(
                    f"hidden states of {counts} tokens take {expected} bytes a buffer, "
                    f"not {memoryview(buffer).nbytes}"
                )
        with torch.inference_mode():
            parts = [self._tensor(buffer) for buffer in buffers]
            if self._wire == "sum":
                parts.insert(0, torch.zeros_like(parts[0]))
            return list(zip(*(part.split(counts) for part in parts), strict=True))

    def _tensor(self, buffer: Buffer) -> torch.Tensor:
        import torch

        # A copy: received memory may be read-only or unaligned.
        values = torch.frombuffer(bytearray(buffer), dtype=torch.uint8).view(self._stage.dtype)
        return values.view(-1, self._stage.hidden_size).to(self._stage.device)

    def close(self) -> None:
        """Release weights and KV caches; the engine cannot be used afterwards."""
        self._stage.close()


def _check(spec: EngineSpec) -> None:
    unknown = sorted(set(spec.options) - set(_OPTIONS))
    if unknown:
        raise InputError(
            f"engine 'vllm' has no option '{unknown[0]}'; it has {', '.join(_OPTIONS)}"
        )
    if spec.dtype not in _VALUE_BYTES:
        raise InputError(f"there is no dtype '{spec.dtype}'; there are {', '.join(_VALUE_BYTES)}")


def _wire(spec: EngineSpec) -> str:
    wire = spec.options.get("wire", "sum" if spec.dtype == "float32" else "both")
    if wire not in _WIRES:
        raise InputError(f"wire is {' or '.join(_WIRES)}, not '{wire}'")
    return str(wire)


def _max_rows(spec: EngineSpec) -> int:
    value = spec.options.get("max_num_seqs", 256)
    if not isinstance(value, int) or value < 1:
        raise InputError(f"max_num_seqs must be a whole number above zero, not {value!r}")
    return min(value, spec.max_batch_tokens)


def _start(spec: EngineSpec, max_num_seqs: int) -> VllmStage:
    if spec.model is None:
        raise InputError("engine 'vllm' needs the folder of a model")
    device_type = spec.device.partition(":")[0]
    _set_environment(device_type)
    with warnings.catch_warnings():
        # vLLM and its dependencies warn of deprecated calls.
        warnings.simplefilter("ignore")
        try:
            from helixreal.engines import vllm_model, vllm_stage
        except ModuleNotFoundError as error:
            raise InputError(
                f"engine 'vllm' needs {error.name}: pip install 'helixsim[vllm]'"
            ) from error
        if spec.device not in (vllm_stage.DEVICE_TYPE, f"{vllm_stage.DEVICE_TYPE}:0"):
            raise InputError(
                f"device is '{spec.device}', but this vLLM runs on '{vllm_stage.DEVICE_TYPE}'; "
                "of several devices it takes the first, which CUDA_VISIBLE_DEVICES selects"
            )
        architecture = _architecture(spec, spec.model, vllm_model.ARCHITECTURES)
        arguments = _arguments(spec, device_type, max_num_seqs)
        try:
            return vllm_stage.VllmStage(
                spec.model, architecture, spec.start_layer, spec.end_layer, arguments
            )
        except (ValueError, RuntimeError, OSError) as error:
            raise InputError(f"vLLM cannot start: {_reason(error)}") from error


def _set_environment(device_type: str) -> None:
    """Set environment variables before vLLM is imported, unless the user has set them."""
    environment = dict(_ENVIRONMENT)
    if device_type == "cpu":
        environment |= _CPU_ENVIRONMENT
        # It warns that Triton is missing, which CPUs do not use.
        logging.getLogger("torch._library.triton").setLevel(logging.ERROR)
    for name, value in environment.items():
        os.environ.setdefault(name, value)
    if os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] != "0":
        raise InputError("engine 'vllm' needs VLLM_ENABLE_V1_MULTIPROCESSING=0 in the environment")


def _reason(error: Exception) -> str:
    """The message of an error of vLLM, without pydantic's wrapping."""
    _, found, reason = str(error).partition("Value error, ")
    return reason.partition(" [type=")[0] if found else str(error)


def _arguments(spec: EngineSpec, device_type: str, max_num_seqs: int) -> dict[str, Any]:
    """Arguments of vLLM's ``LLM`` for data types and memory."""
    arguments: dict[str, Any] = {
        "dtype": spec.dtype,
        "block_size": spec.block_tokens,
        "max_model_len": spec.max_context_tokens,
        "max_num_batched_tokens": spec.max_batch_tokens,
        "max_num_seqs": max_num_seqs,
        "load_format": "dummy" if spec.dummy_weights else "auto",
    }
    memory_bytes = spec.kv_memory_bytes
    utilization = spec.options.get("gpu_memory_utilization")
    if device_type == "cpu":
        arguments["block_size"] = -(-spec.block_tokens // _CPU_BLOCK_TOKENS) * _CPU_BLOCK_TOKENS
        if memory_bytes is None and utilization is None:
            # vLLM would take most of the memory, and fail if other processes use some of it.
            memory_bytes = min(_CPU_KV_BYTES, _free_bytes() // 2)
    if memory_bytes is not None:
        arguments["kv_cache_memory_bytes"] = memory_bytes
    if utilization is not None:
        arguments["gpu_memory_utilization"] = utilization
    return arguments


def _free_bytes() -> int:
    # Not every system reports free memory.
    pages = "SC_AVPHYS_PAGES" if "SC_AVPHYS_PAGES" in os.sysconf_names else "SC_PHYS_PAGES"
    return os.sysconf(pages) * os.sysconf("SC_PAGE_SIZE")


def _architecture(spec: EngineSpec, model: str, supported: Sequence[str]) -> str:
    """The architecture of the model in config.json."""
    file = Path(model) / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", file=file) from error
    except ValueError as error:
        raise InputError(f"is not JSON: {error}", file=file) from error
    if not isinstance(config, Mapping):
        raise InputError("must be a mapping", file=file)
    architecture = str((config.get("architectures") or ["none"])[0])
    if architecture not in supported:
        raise InputError(
            f"{architecture} is not supported; {', '.join(supported)} are",
            file=file,
            where="architectures",
        )
    num_layers = config.get("num_hidden_layers")
    if num_layers != spec.num_layers:
        raise InputError(
            f"the model has {num_layers} layers, but the scenario's LLM has {spec.num_layers}",
            file=file,
        )
    return architecture
