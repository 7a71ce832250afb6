"""Steps of one engine with all layers of a model, without a cluster: decodes and a prefill.

python tests/bench/engine_steps.py MODEL --engine torch --device cuda:0 --dtype bfloat16

Weights are random; of the model, config.json is enough. Each step is longer by a token than the one
before, as in serving.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from helixreal.engines import make_engine
from helixreal.engines.engine import Engine, EngineSpec, Row
from helixreal.engines.model_config import read_llama_config
from helixsim.control.kv_cache import reserve

STEPS = 20
WARM_UP_STEPS = 5
PREFILL_TOKENS = 1024


def make(options: argparse.Namespace) -> Engine:
    """The engine with all layers of the model."""
    num_layers = read_llama_config(options.model).num_layers
    return make_engine(
        options.engine,
        EngineSpec(
            start_layer=0,
            end_layer=num_layers,
            num_layers=num_layers,
            entry_layers=(0,),
            model=str(options.model),
            device=options.device,
            dtype=options.dtype,
            kv_memory_bytes=int(options.kv_gb * 1e9),
            max_batch_tokens=4096,
            max_context_tokens=4096,
            dummy_weights=True,
        ),
    )


def step_s(engine: Engine, num_layers: int, contexts: Sequence[int], prefill_tokens: int) -> float:
    """Median time of a step of one decode for each context and, if not 0 tokens, one prefill."""
    spans = {request: (context, 1) for request, context in enumerate(contexts)}
    if prefill_tokens:
        spans[len(contexts)] = (0, prefill_tokens)
    times_s = []
    for step in range(WARM_UP_STEPS + STEPS):
        rows = []
        for request, (start, num_tokens) in spans.items():
            position = start + (step if num_tokens == 1 else 0)
            if not reserve(engine.kv, request, position + num_tokens):
                raise SystemExit("the KV cache is too small: give a larger --kv-gb")
            rows.append(Row(request, position, num_tokens, [7] * num_tokens, wants_token=True))
        began = time.perf_counter()
        engine.run(rows, 0, num_layers)
        times_s.append(time.perf_counter() - began)
    for request in spans:
        engine.kv.release(request)
    return median(times_s[WARM_UP_STEPS:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--engine", default="torch")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--kv-gb", type=float, default=40.0)
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--requests", default="1,16,64,128,192")
    options = parser.parse_args()
    engine = make(options)
    num_layers = read_llama_config(options.model).num_layers
    rng = random.Random(0)
    print("requests  equal contexts  mixed contexts  mixed and a prefill   (ms of a step)")
    for count in (int(part) for part in options.requests.split(",")):
        equal = [options.context] * count
        mixed = [rng.randrange(1, 2 * options.context) for _ in range(count)]
        found_s = (
            step_s(engine, num_layers, equal, 0),
            step_s(engine, num_layers, mixed, 0),
            step_s(engine, num_layers, mixed, PREFILL_TOKENS),
        )
        print(f"{count:8d}" + "".join(f"{1e3 * found:16.2f}" for found in found_s), flush=True)
    engine.close()


if __name__ == "__main__":
    main()
