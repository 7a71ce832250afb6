"""Measures a machine with an engine and a model, and writes machine and LLM files.

It uses the engine protocol only, so that it can measure every engine.
"""

from __future__ import annotations

import operator
import re
import statistics
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from helixreal.engines.engine import Engine, EngineSpec, Row
from helixreal.engines.model_config import VALUE_BYTES, LlamaConfig
from helixsim.control.kv_cache import reserve
from helixsim.errors import InputError
from helixsim.profiles.llm_spec import LLMSpec
from helixsim.profiles.spec import MachineSpec
from helixsim.yaml_files import parse_yaml, validate, yaml_text

_LAYERS_TIMED = 4
"""Default number of layers of the measured engine, enough to amortize fixed costs of a batch."""
_MAX_DECODES = 256
_WARM_UP_S = 0.25
"""A GPU that was idle takes some time until it has its full clock rate."""
_TWO_BYTE_TOKENS = 1 << 16

MakeEngine = Callable[[EngineSpec], Engine]
ReportProgress = Callable[[str, int, int], None]
"""Called with the name of the measurement and the numbers of finished points and of all points."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileSettings:
    """Settings of a measurement.

    Attributes
    ----------
    model
        Folder of the model.
    device, dtype
        As in an engine's spec.
    layers
        Increasing numbers of layers for which KV capacity is measured; the last is the maximum of
        the machine, and its layers are timed. Others are derived. If empty, 1 and 4 are measured,
        or only 4 if the memory for KV caches is given; the maximum is what fits.
    max_batch_tokens
        The longest prompt that is timed.
    repeats
        Runs of each point, of which the median is taken.
    kv_memory_bytes
        Memory for KV caches for every number of layers; None for the memory that is free.
    context_tokens
        Context of every decode.
    dummy_weights
        Random weights: the times are the same, and no weights are read.
    """

    model: Path
    device: str = "cpu"
    dtype: str = "float32"
    layers: tuple[int, ...] = ()
    max_batch_tokens: int = 2048
    repeats: int = 5
    kv_memory_bytes: int | None = None
    context_tokens: int = 256
    dummy_weights: bool = False


@dataclass(frozen=True, slots=True)
class Measured:
    """Results of a measurement.

    Attributes
    ----------
    prefill, decode
        Batched tokens -> seconds of one layer, with its share of the fixed time of a pass if the
        machine holds as many layers as it can.
    kv_token_layers
        Layers held -> KV capacity in tokens x layers, for every count from 1 up.
    wire_bytes_per_token
        Bytes of one token's hidden state in messages.
    """

    prefill: dict[int, float]
    decode: dict[int, float]
    kv_token_layers: dict[int, int]
    wire_bytes_per_token: int


def measure(
    make: MakeEngine,
    settings: ProfileSettings,
    config: LlamaConfig,
    watch: ReportProgress = lambda step, done, total: None,
) -> Measured:
    """Measure this machine.

    Parameters
    ----------
    make
        Makes an engine.
    settings, config
        Settings of the measurement, and config of the model.
    watch
        Called with the progress.

    Raises
    ------
    InputError
        If the settings do not fit the model, or there is not enough KV memory.
    """
    _check(settings, config)
    asked = settings.layers or _default_layers(settings, config)
    token_layers: dict[int, int] = {}
    for count in asked:
        watch(f"loading {count} layers", 0, 1)
        with _engine(make, settings, config, count) as engine:
            token_layers[count] = engine.kv_blocks * engine.block_tokens * count
            if count == asked[-1]:
                timer = _Timer(engine, count, settings, config)
                prefill, decode = timer.prefill(watch), timer.decode(watch)
                wire_bytes_per_token = engine.wire_bytes_per_token
    most = settings.layers[-1] if settings.layers else config.num_layers
    kv_token_layers = _filled(token_layers, most, settings, config)
    held = max(kv_token_layers)
    return Measured(
        {tokens: one.share_s(held) for tokens, one in prefill.items()},
        {tokens: one.share_s(held) for tokens, one in decode.items()},
        kv_token_layers,
        wire_bytes_per_token,
    )


def _default_layers(settings: ProfileSettings, config: LlamaConfig) -> tuple[int, ...]:
    timed = max(1, min(_LAYERS_TIMED, config.num_layers - 1))
    return (timed,) if settings.kv_memory_bytes is not None or timed == 1 else (1, timed)


def _check(settings: ProfileSettings, config: LlamaConfig) -> None:
    if settings.dtype not in VALUE_BYTES:
        raise InputError(
            f"there is no dtype '{settings.dtype}'; there are {', '.join(VALUE_BYTES)}"
        )
    counts = settings.layers
    if list(counts) != sorted(set(counts)) or any(
        not 1 <= count <= config.num_layers for count in counts
    ):
        raise InputError(
            f"layers must be increasing numbers from 1 to {config.num_layers}, the model's layers"
        )


@contextmanager
def _engine(
    make: MakeEngine, settings: ProfileSettings, config: LlamaConfig, count: int
) -> Iterator[Engine]:
    spec = EngineSpec(
        start_layer=0,
        end_layer=count,
        num_layers=config.num_layers,
        entry_layers=(0, 1) if count > 1 else (0,),
        model=str(settings.model),
        device=settings.device,
        dtype=settings.dtype,
        kv_memory_bytes=settings.kv_memory_bytes,
        max_batch_tokens=settings.max_batch_tokens,
        max_context_tokens=max(settings.max_batch_tokens, settings.context_tokens + 1),
        dummy_weights=settings.dummy_weights,
    )
    engine = make(spec)
    try:
        yield engine
    finally:
        engine.close()


def _filled(
    asked: dict[int, int], most: int, settings: ProfileSettings, config: LlamaConfig
) -> dict[int, int]:
    """KV capacity for every number of layers, on lines through the measured numbers.

    If the engine takes free memory, the weights of each additional layer reduce it: how much, two
    measured numbers show, since engines leave different shares free. After a single number, the
    engine is taken to use all.
    """
    known = sorted(asked)
    layer_bytes = config.layer_values * VALUE_BYTES[settings.dtype]
    token_layer_bytes = config.kv_values_per_token * VALUE_BYTES[settings.dtype]
    filled = {}
    for count in range(1, most + 1):
        above = min(max(bisect_left(known, count), 1), len(known) - 1)
        last, before = known[above], known[above - 1]
        if settings.kv_memory_bytes is not None:
            lost = 0.0
        elif last == before:
            lost = layer_bytes / token_layer_bytes
        else:
            lost = max((asked[before] - asked[last]) / (last - before), 0.0)
        tokens = int(asked[last] - lost * (count - last)) // count
        if tokens < 1:
            break
        filled[count] = asked.get(count, tokens * count)
    return filled


@dataclass(frozen=True, slots=True)
class _PassTime:
    """Seconds of a pass, whatever its layers, and of each layer."""

    fixed_s: float
    layer_s: float

    @classmethod
    def of(cls, one_s: Sequence[float], several_s: Sequence[float], num_layers: int) -> _PassTime:
        """From pairs of passes, one after the other, through one layer and through several."""
        whole_s = statistics.median(several_s)
        mean_s = whole_s / num_layers
        if num_layers == 1:
            return cls(0.0, mean_s)
        more_s = statistics.median(map(operator.sub, several_s, one_s))
        # Noise must not make a layer longer than the mean, nor shorter than nothing.
        layer_s = min(max(more_s / (num_layers - 1), 0.0), mean_s)
        return cls(whole_s - num_layers * layer_s, layer_s)

    def share_s(self, num_layers: int) -> float:
        """Time of one of `num_layers` layers that a pass goes through."""
        # With a coarse clock, the difference could be zero.
        return max(self.layer_s + self.fixed_s / num_layers, 1e-9)


class _Timer:
    """Times the layers of an engine, without the first if there are several."""

    def __init__(
        self, engine: Engine, count: int, settings: ProfileSettings, config: LlamaConfig
    ) -> None:
        self._engine = engine
        self._settings = settings
        self._start = 1 if count > 1 else 0
        self._end = count
        self._makes_tokens = count == config.num_layers
        self._vocab_size = config.vocab_size
        self._warm_up_s = _WARM_UP_S

    def prefill(self, watch: ReportProgress) -> dict[int, _PassTime]:
        """Time prompts of n tokens in batches of one."""
        counts = _points(self._settings.max_batch_tokens)
        return self._curve("prompts", counts, lambda n: [(0, n)], watch)

    def decode(self, watch: ReportProgress) -> dict[int, _PassTime]:
        """Time batches of n decodes with the same context."""
        counts = _points(min(_MAX_DECODES, self._settings.max_batch_tokens))
        context = self._settings.context_tokens
        return self._curve("decodes", counts, lambda n: [(context, 1)] * n, watch)

    def _curve(
        self,
        step: str,
        counts: Sequence[int],
        shape: Callable[[int], list[tuple[int, int]]],
        watch: ReportProgress,
    ) -> dict[int, _PassTime]:
        times: dict[int, _PassTime] = {}
        for done, count in enumerate(counts):
            watch(step, done, len(counts))
            spans = shape(count)
            fits = all(
                reserve(self._engine.kv, request, position + num_tokens)
                for request, (position, num_tokens) in enumerate(spans)
            )
            if fits:
                times[count] = self._pass_time(spans)
            for request in range(len(spans)):
                self._engine.kv.release(request)
            if not fits:
                break
        if not times:
            raise InputError(f"the KV cache has no room to time {step}; give it more memory")
        return times

    def _pass_time(self, spans: Sequence[tuple[int, int]]) -> _PassTime:
        """Median times of passes; the contents of the caches do not matter.

        A pass has a fixed time, for instance to describe the batch to the device. In an engine of a
        few layers it would count for several times as much as on a machine that holds many.
        """
        rows = [
            Row(
                request,
                position,
                num_tokens,
                [token % self._vocab_size for token in range(num_tokens)],
                wants_token=self._makes_tokens,
            )
            for request, (position, num_tokens) in enumerate(spans)
        ]
        if self._start:
            for row, payload in zip(rows, self._engine.run(rows, 0, self._start), strict=True):
                row.payload = payload
        until_s = time.perf_counter() + self._warm_up_s
        self._engine.run(rows, self._start, self._end)
        while time.perf_counter() < until_s:
            self._engine.run(rows, self._start, self._end)
        self._warm_up_s = 0.0
        one_s: list[float] = []
        several_s: list[float] = []
        for _ in range(self._settings.repeats):
            for end, spent_s in ((self._start + 1, one_s), (self._end, several_s)):
                begin = time.perf_counter()
                self._engine.run(rows, self._start, end)
                spent_s.append(time.perf_counter() - begin)
        return _PassTime.of(one_s, several_s, self._end - self._start)


def _points(most: int) -> list[int]:
    """Batched tokens to time: 1, 2, 3, 4, 6, 8, 12 and so on, up to `most`."""
    counts = {1, most}
    power = 2
    while power <= most:
        counts |= {power, power * 3 // 2}
        power *= 2
    return sorted(count for count in counts if count <= most)


# -- files -----------------------------------------------------------------------------------


def file_name(text: str) -> str:
    """A similar text that is a valid name."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-._")[:64] or "unnamed"


def machine_text(
    measured: Measured,
    *,
    name: str,
    llm_name: str,
    source: str,
    memory_bytes: int,
    nic: str,
    disk: str,
) -> str:
    """The text of a machine file, validated as when it is loaded.

    Parameters
    ----------
    measured
        Results of the measurement.
    name, llm_name
        Names of the machine type and the LLM.
    source
        Source of the figures.
    memory_bytes
        Memory of the machine.
    nic, disk
        Bandwidths, with units.
    """
    kv = measured.kv_token_layers
    text = yaml_text(
        {
            "schema": 1,
            "kind": "machine",
            "name": name,
            "source": source,
            "memory": f"{memory_bytes} B",
            "nic": nic,
            "disk": disk,
            "llms": {
                llm_name: {
                    "prefill": _curve_document(measured.prefill),
                    "decode": _curve_document(measured.decode),
                    "max_layers": max(kv),
                    "kv": {"layers": list(kv), "token_layers": list(kv.values())},
                    "batch_limits": {
                        "max_prompt_tokens": max(measured.prefill),
                        "max_decode_tokens": max(measured.decode),
                    },
                }
            },
        }
    )
    validate(MachineSpec, parse_yaml(text, name), None).to_machine_type({})
    return text


def _curve_document(seconds: dict[int, float]) -> dict[str, Any]:
    return {
        "tokens": [0, *seconds],
        "ms": [0.0, *(float(f"{1000 * value:.4g}") for value in seconds.values())],
    }


def llm_text(
    config: LlamaConfig, *, name: str, dtype: str, wire_bytes_per_token: int, source: str
) -> str:
    """The text of an LLM file, validated as when it is loaded.

    Parameters
    ----------
    config
        Config of the model.
    name
        Name of the LLM.
    dtype
        Data type of weights, activations and KV caches.
    wire_bytes_per_token
        Bytes of one token in messages; may differ from the size of the hidden state.
    source
        Source of the figures.
    """
    value_bytes = VALUE_BYTES[dtype]
    document: dict[str, Any] = {
        "schema": 1,
        "kind": "llm",
        "name": name,
        "source": source,
        "num_layers": config.num_layers,
    }
    if wire_bytes_per_token == config.hidden_size * value_bytes:
        document |= {"hidden_size": config.hidden_size, "bytes_per_value": value_bytes}
    else:
        document["activation_size"] = f"{wire_bytes_per_token} B"
    document |= {
        "token_size": "2 B" if config.vocab_size <= _TWO_BYTE_TOKENS else "4 B",
        "layer_size": f"{config.layer_values * value_bytes} B",
        "kv_size": f"{config.kv_values_per_token * value_bytes} B",
    }
    text = yaml_text(document)
    validate(LLMSpec, parse_yaml(text, name), None).to_llm()
    return text
