"""The vLLM engine: layers on vLLM's kernels, loader and KV cache sizing."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from helixreal.engines.engine import Buffer, EngineSpec, Payload, Row
from helixreal.engines.grammar import Grammars
from helixsim.control.prefix_cache import PrefixCache
from helixsim.errors import InputError
from helixsim.llms.config_file import read_config_file

if TYPE_CHECKING:
    import torch

    from helixreal.engines.torch_device import DeviceCopies
    from helixreal.engines.vllm_ranks import RankedStage
    from helixreal.engines.vllm_stage import VllmStage

_ENVIRONMENT = {
    # Layers are called directly, so they must be in this process.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    # Tokens are not sampled by vLLM, whose sampler would need FlashInfer and compile its kernels.
    "VLLM_USE_FLASHINFER_SAMPLER": "0",
}
# On a machine with other load, threads that wait for each other cost more than they save.
_CPU_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}

# Workers of vLLM start afresh: this process has threads and sockets.
_RANKS_ENVIRONMENT = {
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    "PYTHONWARNINGS": "ignore",  # of deprecated calls, as in this process
}

_OPTIONS = ("gpu_memory_utilization", "max_num_seqs", "wire")
_WIRES = ("both", "sum")
_VALUE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_CPU_BLOCK_TOKENS = 32
_LEAST_UTILIZATION = 0.01
"""With a given memory for KV caches, vLLM uses its share of the device only to refuse a start while
less than the share is free: by default 0.92, so that no two workers could use one GPU."""
_CPU_KV_BYTES = 4 << 30
"""Default memory for KV caches on a CPU, limited to half of the free memory. vLLM writes to all of
it when it starts."""


class VllmEngine:
    """Runs layers of a Llama-type model; see :class:`~helixreal.engines.engine.Engine`.

    Hidden states are a pair of tensors, each of shape (tokens, hidden size): the output of the
    last layer, and the residual stream to which vLLM adds it within the next norm. In 16 bits the
    sum is rounded: if the sum is sent, tokens may differ from a run in one process.

    With several devices, vLLM divides every layer among them (tensor parallelism), each in a worker
    process of its own.

    Parameters
    ----------
    spec
        Layers, model and devices. On a CPU, `block_tokens` is rounded up to a multiple of 32. The
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
        self._copies = _copies(self._stage.device)
        self.block_tokens = self._stage.block_tokens
        self.kv_blocks = self._stage.num_blocks - 1
        self.vocabulary = self._stage.vocabulary
        self.kv = PrefixCache(
            self.kv_blocks, self.block_tokens, first_block=1, clear=self._stage.clear
        )
        self._buffer_bytes_per_token = self._stage.hidden_size * _VALUE_BYTES[spec.dtype]
        self._num_buffers = 2 if self._wire == "both" else 1
        self.wire_bytes_per_token = self._num_buffers * self._buffer_bytes_per_token

    def run(self, rows: Sequence[Row], start_layer: int, end_layer: int) -> list[Payload]:
        """Run the layers ``[start_layer, end_layer)`` on a batch whose KV blocks are allocated."""
        import torch

        from helixreal.engines.torch_device import wait_for

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
            wait_for(self._stage.device)
        return payloads

    def _run(self, rows: Sequence[Row], start_layer: int, end_layer: int) -> list[Payload]:
        from helixreal.engines.vllm_stage import Span

        spans = [Span(row.position, row.num_tokens, self.kv.table(row.request)) for row in rows]
        entering = _entering(rows, start_layer)
        hidden, residual = self._stage.run(spans, entering, start_layer, end_layer)
        if end_layer == self._spec.num_layers:
            return self._tokens(hidden, residual, rows)
        counts = [row.num_tokens for row in rows]
        return list(zip(hidden.split(counts), residual.split(counts), strict=True))

    def _tokens(
        self, hidden: torch.Tensor, residual: torch.Tensor, rows: Sequence[Row]
    ) -> list[Payload]:
        """Sample a token after the last layer for each row that wants one."""
        from helixreal.engines.sampling import sample_rows

        return sample_rows(
            rows,
            lambda positions: self._stage.logits(hidden[positions], residual[positions]),
            self._grammars,
        )

    @property
    def lost(self) -> str | None:
        """Why the engine cannot go on, if a process of it has ended."""
        return self._stage.lost

    def pack(self, payloads: Sequence[Payload]) -> list[Buffer]:
        """Serialize hidden states of rows: buffers of outputs and of residuals, or one of sums."""
        import torch

        with torch.inference_mode(), self._copies.beside_passes():
            parts = [torch.cat([payload[part] for payload in payloads]) for part in range(2)]
            if self._wire == "sum":
                parts = [parts[0] + parts[1]]
            return [self._copies.to_buffer(part) for part in parts]

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
        with torch.inference_mode(), self._copies.beside_passes():
            parts = [self._tensor(buffer) for buffer in buffers]
            if self._wire == "sum":
                parts.insert(0, torch.zeros_like(parts[0]))
            return list(zip(*(part.split(counts) for part in parts), strict=True))

    def _tensor(self, buffer: Buffer) -> torch.Tensor:
        import torch

        # A copy: received memory may be read-only or unaligned.
        values = torch.frombuffer(bytearray(buffer), dtype=torch.uint8).view(self._stage.dtype)
        return self._copies.to_device(values.view(-1, self._stage.hidden_size))

    def close(self) -> None:
        """Release weights and KV caches; the engine cannot be used afterwards."""
        self._stage.close()


def _copies(device: torch.device) -> DeviceCopies:
    from helixreal.engines.torch_device import DeviceCopies

    return DeviceCopies(device)


def _entering(rows: Sequence[Row], start_layer: int) -> list[int] | tuple[Any, Any]:
    """Token ids before layer 0; else hidden states, copied, as vLLM's norms write into them."""
    if start_layer == 0:
        return [token for row in rows for token in row.payload]
    import torch

    return (
        torch.cat([row.payload[0] for row in rows]),
        torch.cat([row.payload[1] for row in rows]),
    )


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


def _start(spec: EngineSpec, max_num_seqs: int) -> VllmStage | RankedStage:
    if spec.model is None:
        raise InputError("engine 'vllm' needs the folder of a model")
    device_type = spec.devices[0].partition(":")[0]
    _set_environment(device_type, len(spec.devices))
    with warnings.catch_warnings():
        # vLLM and its dependencies warn of deprecated calls.
        warnings.simplefilter("ignore")
        try:
            from helixreal.engines import vllm_model, vllm_stage
        except ModuleNotFoundError as error:
            raise InputError(
                f"engine 'vllm' needs {error.name}: pip install 'helixsim[vllm]'"
            ) from error
        _check_devices(spec, vllm_stage.DEVICE_TYPE)
        architecture = _architecture(spec, spec.model, vllm_model.ARCHITECTURES)
        arguments = _arguments(spec, device_type, max_num_seqs)
        try:
            llm = vllm_stage.start_llm(
                spec.model, architecture, spec.start_layer, spec.end_layer, arguments
            )
            if len(spec.devices) > 1:
                from helixreal.engines.vllm_ranks import RankedStage

                return RankedStage(llm)
            return vllm_stage.VllmStage(llm)
        except (ValueError, RuntimeError, OSError, ImportError) as error:
            raise InputError(f"vLLM cannot start: {_reason(error)}") from error


def _check_devices(spec: EngineSpec, device_type: str) -> None:
    """Check that the devices are the ones that vLLM takes."""
    count = len(spec.devices)
    numbered = [f"{device_type}:{number}" for number in range(count)]
    same = [device_type] * count
    if list(spec.devices) not in (
        [numbered, same] if count == 1 or device_type == "cpu" else [numbered]
    ):
        raise InputError(
            f"device is '{spec.device}', but this vLLM runs on '{device_type}'; of several devices "
            f"it takes the first, here '{','.join(numbered)}', which CUDA_VISIBLE_DEVICES selects"
        )


def _set_environment(device_type: str, num_devices: int) -> None:
    """Set environment variables before vLLM is imported, unless the user has set them."""
    environment = dict(_ENVIRONMENT)
    if num_devices > 1:
        environment |= _RANKS_ENVIRONMENT
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
    if len(spec.devices) > 1:
        arguments["tensor_parallel_size"] = len(spec.devices)
        arguments["distributed_executor_backend"] = "mp"
        arguments["worker_extension_cls"] = "helixreal.engines.vllm_ranks.LayersExtension"
    if memory_bytes is not None:
        arguments["kv_cache_memory_bytes"] = memory_bytes // len(spec.devices)
        if device_type != "cpu" and utilization is None:
            utilization = _LEAST_UTILIZATION
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
    values = read_config_file(file)
    architecture = str((values.items("architectures") or ["none"])[0])
    if architecture not in supported:
        raise InputError(
            f"{architecture} is not supported; {', '.join(supported)} are",
            file=file,
            where="architectures",
        )
    num_layers = values.get("num_hidden_layers")
    if num_layers != spec.num_layers:
        raise InputError(
            f"the model has {num_layers} layers, but the scenario's LLM has {spec.num_layers}",
            file=file,
        )
    heads, num_devices = values.get("num_attention_heads"), len(spec.devices)
    if isinstance(heads, int) and heads % num_devices:
        counts = " or ".join(str(n) for n in range(1, heads + 1) if heads % n == 0)
        raise InputError(
            f"{heads} cannot be divided among {num_devices} devices; use {counts}",
            file=file,
            where="num_attention_heads",
        )
    return architecture
