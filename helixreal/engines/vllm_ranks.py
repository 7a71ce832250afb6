"""Layers on several devices, by vLLM's own tensor parallelism: one vLLM worker for each device.

vLLM adds :class:`LayersExtension` to its workers, in processes of their own, and this process calls
its methods in all of them at once. Like :mod:`.vllm_stage`, this module uses interfaces that vLLM
may change between releases.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from vllm import LLM

from helixreal.engines.failures import EngineLostError
from helixreal.engines.vllm_model import Hidden
from helixreal.engines.vllm_stage import LoadedLayers, Span, register_model

_Facts = tuple[int, int, str, int, int]
_Answer = tuple[bool, Any]
"""Whether a call succeeded; its result on rank 0, or the error."""

register_model()  # vLLM's workers import this module before they load the model


class LayersExtension:
    """Methods that vLLM adds to its workers; they answer rather than raise, so that all answer."""

    rank: int
    _helix_layers: LoadedLayers

    def helix_prepare(self) -> _Answer:
        """Prepare the layers that were loaded; the answer has their :data:`_Facts`."""

        def prepare() -> _Facts:
            layers = self._helix_layers = LoadedLayers(self)
            dtype = str(layers.dtype).removeprefix("torch.")
            return (
                layers.num_blocks,
                layers.block_tokens,
                dtype,
                layers.hidden_size,
                layers.vocabulary,
            )

        return self._helix_answer(prepare)

    def helix_run(
        self,
        spans: list[tuple[int, int, list[int]]],
        entering: list[int] | Hidden,
        start_layer: int,
        end_layer: int,
    ) -> _Answer:
        """See :meth:`LoadedLayers.run`; results are on the CPU."""

        def run() -> Hidden | None:
            with torch.inference_mode():
                hidden, residual = self._helix_layers.run(
                    [Span(*span) for span in spans], entering, start_layer, end_layer
                )
                return None if self.rank > 0 else (hidden.cpu(), residual.cpu())

        return self._helix_answer(run)

    def helix_logits(self, hidden: torch.Tensor, residual: torch.Tensor) -> _Answer:
        """See :meth:`LoadedLayers.logits`; results are on the CPU."""

        def compute() -> torch.Tensor | None:
            with torch.inference_mode():
                logits = self._helix_layers.logits(hidden, residual)
                return None if self.rank > 0 else logits.cpu()

        return self._helix_answer(compute)

    def helix_clear(self, blocks: list[int]) -> _Answer:
        """See :meth:`LoadedLayers.clear`."""
        return self._helix_answer(lambda: self._helix_layers.clear(blocks))

    def _helix_answer(self, act: Callable[[], Any]) -> _Answer:
        try:
            return True, act()
        except Exception as error:
            return False, f"{type(error).__name__}: {error}"


class RankedStage:
    """Layers on several devices; for attributes and methods see :class:`.vllm_stage.VllmStage`.

    Hidden states are on the CPU in this process.

    Parameters
    ----------
    llm
        As `start_llm` returns it, with :class:`LayersExtension` as its ``worker_extension_cls``.
    """

    def __init__(self, llm: LLM) -> None:
        self._llm = llm
        facts: _Facts = self._call("helix_prepare")
        self.num_blocks, self.block_tokens, dtype, self.hidden_size, self.vocabulary = facts
        self.dtype: torch.dtype = getattr(torch, dtype)
        self.device = torch.device("cpu")

    @property
    def lost(self) -> str | None:
        """Why the layers cannot be run any more, if a worker of vLLM has ended."""
        core = self._llm.llm_engine.engine_core.engine_core
        return "a worker process of vLLM has ended" if core.model_executor.is_failed else None

    def run(
        self,
        spans: Sequence[Span],
        entering: list[int] | Hidden,
        start_layer: int,
        end_layer: int,
    ) -> Hidden:
        """Run layers on all devices."""
        rows = [(span.position, span.num_tokens, list(span.blocks)) for span in spans]
        after: Hidden = self._call("helix_run", rows, entering, start_layer, end_layer)
        return after

    def logits(self, hidden: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        """Logits of shape (tokens, vocabulary) for hidden states after the last layer."""
        logits: torch.Tensor = self._call("helix_logits", hidden, residual)
        return logits

    def clear(self, blocks: Sequence[int]) -> None:
        """Clear KV blocks on all devices."""
        self._call("helix_clear", list(blocks))

    def _call(self, method: str, *arguments: Any) -> Any:  # noqa: ANN401
        """Call a method of all workers; the result of rank 0.

        Raises
        ------
        RuntimeError
            If all of them raised an error, so that they can go on.
        EngineLostError
            If only some did, or one has ended.
        """
        try:
            answers: list[_Answer] = self._llm.collective_rpc(method, args=arguments)
        except Exception as error:
            raise EngineLostError(self.lost or f"vLLM's workers have failed: {error}") from error
        errors = [result for succeeded, result in answers if not succeeded]
        if errors and len(errors) < len(answers):
            raise EngineLostError(f"one of vLLM's workers has failed: {errors[0]}")
        if errors:
            raise RuntimeError(errors[0])
        return answers[0][1]

    def close(self) -> None:
        """End vLLM's workers; the stage cannot be used afterwards."""
        self._llm.llm_engine.engine_core.shutdown()
        del self._llm
