"""The vLLM engine: vLLM's kernels, loader and KV caches under our own batches."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

for _name, _value in (
    ("VLLM_ENABLE_V1_MULTIPROCESSING", "0"),  # the worker is to be in this process
    ("HF_HUB_OFFLINE", "1"),
    ("VLLM_LOGGING_LEVEL", "ERROR"),
    ("VLLM_NO_USAGE_STATS", "1"),
):
    os.environ.setdefault(_name, _value)

import torch  # noqa: E402  (vLLM reads the environment when it is imported)
from vllm import LLM, ModelRegistry  # noqa: E402

from helixreal.engines.engine import Buffer, EngineSpec, Payload, Row  # noqa: E402
from helixreal.engines.kv_blocks import KvBlocks  # noqa: E402
from helixreal.engines.sampling import choose_tokens  # noqa: E402
from helixreal.engines.vllm_stage import (  # noqa: E402
    ARCHITECTURE,
    HelixStageForCausalLM,
    Stage,
    StepShape,
)
from helixsim.errors import InputError  # noqa: E402

_SUPPORTED = ("LlamaForCausalLM",)
_CPU_BLOCK_TOKENS = 32
_PADDING_BLOCKS = 1
"""Block 0 is where kernels write what belongs to nobody."""

State = tuple[torch.Tensor, torch.Tensor | None]
"""Hidden state and residual; None if they have been added up."""


class VllmEngine:
    """Layers of a Llama-type model on vLLM; see :class:`helixreal.engines.engine.Engine`.

    Options: ``wire``, ``both`` (hidden state and residual apart: exact, the default in 16-bit
    types) or ``sum`` (half the bytes, exact in float32, where it is the default);
    ``gpu_memory_utilization``, as vLLM's.

    Parameters
    ----------
    spec
        What it is to hold.

    Raises
    ------
    InputError
        If the model is not of a supported architecture, or an option is wrong.
    """

    def __init__(self, spec: EngineSpec) -> None:
        if spec.model is None:
            raise InputError("the vllm engine needs a model: give its folder", where="--model")
        _check_architecture(Path(spec.model))
        sends_both = spec.dtype != "float32"
        if (wire := spec.options.get("wire")) is not None:
            if wire not in ("both", "sum"):
                raise InputError(f"is 'both' or 'sum', not {wire!r}", where="options.wire")
            sends_both = wire == "both"
        ModelRegistry.register_model(ARCHITECTURE, HelixStageForCausalLM)
        self._llm = _start(spec)
        worker = self._llm.collective_rpc(_itself)[0]
        self._stage = Stage(worker)
        self._num_layers = spec.num_layers
        self._sends_both = sends_both
        self.block_tokens = self._stage.block_tokens
        self.kv_blocks = self._stage.num_blocks - _PADDING_BLOCKS
        self._blocks = KvBlocks(self.kv_blocks, self.block_tokens, first_block=_PADDING_BLOCKS)
        self._dtype = next(self._stage.model.parameters()).dtype
        self._hidden_size: int = self._stage.model.config.hidden_size
        self.wire_bytes_per_token = (
            self._hidden_size * self._dtype.itemsize * (2 if sends_both else 1)
        )

    def reserve(self, request: int, num_tokens: int) -> bool:
        """See that the cache of a request has room for that many tokens in all."""
        return self._blocks.reserve(request, num_tokens)

    def release(self, request: int) -> None:
        """Forget the KV cache of a request."""
        self._blocks.release(request)

    @torch.inference_mode()  # type: ignore[untyped-decorator,unused-ignore]
    def run(self, rows: Sequence[Row], start_layer: int, end_layer: int) -> list[Payload]:
        """Run the layers ``[start_layer, end_layer)`` on a batch."""
        # Decodes first, as some kernels want it.
        order = sorted(range(len(rows)), key=lambda index: rows[index].num_tokens > 1)
        batch = [rows[index] for index in order]
        shape = StepShape(
            [row.position for row in batch],
            [row.num_tokens for row in batch],
            [self._blocks.blocks(row.request) for row in batch],
        )
        hidden, residual = self._enter(batch, start_layer)
        hidden, residual = self._stage.run(shape, hidden, residual, start_layer, end_layer)
        assert residual is not None
        is_through = end_layer == self._num_layers
        make = self._tokens if is_through else self._states
        found = make(batch, hidden, residual)
        payloads: list[Payload] = [None] * len(rows)
        for index, payload in zip(order, found, strict=True):
            payloads[index] = payload
        return payloads

    def _enter(self, batch: Sequence[Row], start_layer: int) -> State:
        device = self._stage.device
        if start_layer == 0:
            ids = [token for row in batch for token in row.payload]
            embedded = self._stage.model.embed_input_ids(torch.tensor(ids, device=device))
            return embedded, None
        states: list[State] = [row.payload for row in batch]
        hidden = torch.cat([state[0] for state in states]).to(device)
        if states[0][1] is None:
            return hidden, None
        parts = [state[1] for state in states if state[1] is not None]
        return hidden, torch.cat(parts).to(device)

    def _states(
        self, batch: Sequence[Row], hidden: torch.Tensor, residual: torch.Tensor
    ) -> list[Payload]:
        sizes = [row.num_tokens for row in batch]
        if not self._sends_both:
            return [(part, None) for part in (hidden + residual).split(sizes)]
        return list(zip(hidden.split(sizes), residual.split(sizes), strict=True))

    def _tokens(
        self, batch: Sequence[Row], hidden: torch.Tensor, residual: torch.Tensor
    ) -> list[Payload]:
        ends = torch.tensor([row.num_tokens for row in batch]).cumsum(0) - 1
        wanted = [index for index, row in enumerate(batch) if row.wants_token]
        tokens: list[Payload] = [None] * len(batch)
        if not wanted:
            return tokens
        last = ends[wanted].to(hidden.device)
        logits = self._stage.model.finish(hidden[last], residual[last])
        chosen = choose_tokens(
            logits,
            [batch[index].sampling for index in wanted],
            [batch[index].position + batch[index].num_tokens for index in wanted],
        )
        for index, token in zip(wanted, chosen, strict=True):
            tokens[index] = token
        return tokens

    def pack(self, payloads: Sequence[State]) -> list[Buffer]:
        """Hidden states, and residuals in a second buffer if they are sent apart."""
        columns = [[state[0] for state in payloads]]
        if self._sends_both:
            columns.append([state[1] for state in payloads if state[1] is not None])
        return [
            memoryview(torch.cat(column).cpu().contiguous().view(torch.uint8).numpy()).cast("B")
            for column in columns
        ]

    def unpack(self, buffers: Sequence[Buffer], num_tokens: Sequence[int]) -> list[State]:
        """The way back, given the tokens of each row."""
        size = sum(num_tokens) * self._hidden_size * self._dtype.itemsize
        count = 2 if self._sends_both else 1
        if len(buffers) != count or any(len(buffer) != size for buffer in buffers):
            raise ValueError(
                f"{[len(buffer) for buffer in buffers]} bytes; {count} x {size} were expected"
            )
        columns = [
            torch.frombuffer(bytearray(buffer), dtype=self._dtype)
            .view(-1, self._hidden_size)
            .split(list(num_tokens))
            for buffer in buffers
        ]
        residuals = columns[1] if self._sends_both else [None] * len(num_tokens)
        return list(zip(columns[0], residuals, strict=True))

    def close(self) -> None:
        """Let vLLM end."""
        self._llm.llm_engine.engine_core.shutdown()


def _itself(worker: object) -> object:
    return worker


def _start(spec: EngineSpec) -> LLM:
    """Start vLLM with this stage as its model."""
    settings: dict[str, object] = {}
    if spec.kv_memory_bytes is not None:
        settings["kv_cache_memory_bytes"] = spec.kv_memory_bytes
    if (share := spec.options.get("gpu_memory_utilization")) is not None:
        settings["gpu_memory_utilization"] = share
    if spec.device.startswith("cpu"):
        blocks = -(-spec.block_tokens // _CPU_BLOCK_TOKENS)
        settings["block_size"] = blocks * _CPU_BLOCK_TOKENS
    return LLM(
        spec.model,
        skip_tokenizer_init=True,
        dtype=spec.dtype,
        enforce_eager=True,
        enable_prefix_caching=False,
        max_model_len=spec.max_context_tokens,
        max_num_batched_tokens=max(spec.max_batch_tokens, spec.max_context_tokens),
        load_format="dummy" if spec.dummy_weights else "auto",
        hf_overrides={
            "architectures": [ARCHITECTURE],
            "helix_layers": [spec.start_layer, spec.end_layer],
        },
        **settings,
    )


def _check_architecture(folder: Path) -> None:
    file = folder / "config.json"
    try:
        found = json.loads(file.read_text(encoding="utf-8")).get("architectures")
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(f"is no model's configuration: {error}", file=file) from error
    if not isinstance(found, list) or not set(found) & set(_SUPPORTED):
        raise InputError(
            f"{found} is not supported, only {', '.join(_SUPPORTED)}",
            file=file,
            where="architectures",
        )
