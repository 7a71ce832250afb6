"""What a token costs in a real cluster of processes with the torch engine, on CPUs.

python tests/bench/real_tokens.py hops         latency of a token through two stages
python tests/bench/real_tokens.py throughput   one node behind `helixreal serve` against its engine

With an earlier commit to compare: git worktree add ../before COMMIT, then
PYTHONPATH=../before python tests/bench/real_tokens.py hops --node-scheduler prototype
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from threading import Event, Thread

sys.path.insert(0, str(Path(__file__).parent.parent / "real"))

from engine_driver import Job, make_specs, prompts, serve
from tiny_llama import write_tiny_llama
from tiny_scenario import write_tiny_scenario

from helixreal.coordinator.live import LiveCluster, NoLoad
from helixreal.engines import make_engine
from helixreal.engines.engine import Engine
from helixreal.inventory import NodeEntry
from helixreal.launch import Launch
from helixreal.serving.frontend import GenerationRequest, Token

REPEATS = 5
NUM_TOKENS = 200
NUM_LAYERS = 8
KV_BYTES = 64 << 20


# -- two hops ------------------------------------------------------------------------------------


class Stamps:
    """When the tokens of an answer have come."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.is_over = Event()
        self.end: object = None

    def __call__(self, event: object) -> None:
        if isinstance(event, Token):
            self.times.append(time.perf_counter())
        else:
            self.end = event
            self.is_over.set()

    @property
    def token_s(self) -> float:
        """Mean time from one token to the next."""
        return (self.times[-1] - self.times[0]) / (len(self.times) - 1)


def hops(node_scheduler: str, num_requests: int, engine: str) -> None:
    """Print the median time between two tokens of a request through two stages.

    Emulated, each stage takes 0.8 ms, each link 1 ms.
    """
    with TemporaryDirectory() as folder:
        model = write_tiny_llama(Path(folder) / "model")
        layers = {"n0": [0, 4], "n1": [4, 8]}
        scenario = write_tiny_scenario(
            Path(folder), layers, scheduler={"node": node_scheduler}, physics="calibrated"
        )
        alone_s = two_engines_alone(model)
        entry = NodeEntry(engine="torch", model=str(model), kv_memory_bytes=KV_BYTES)
        if engine == "emulated":
            entry = NodeEntry()
        launch = Launch.local(scenario, (), 0, entry)
        with launch.cluster(load_generator=NoLoad()) as cluster:
            launch.start(cluster)
            live = LiveCluster(cluster, "tiny", launch.max_context_tokens)
            live.start()
            found = []
            for _ in range(REPEATS):
                answers = [Stamps() for _ in range(num_requests)]
                for answer in answers:
                    live.submit(GenerationRequest(prompt=[7] * 10, max_tokens=NUM_TOKENS), answer)
                for answer in answers:
                    assert answer.is_over.wait(120)
                    assert len(answer.times) == NUM_TOKENS, answer.end
                found.append(median(answer.token_s for answer in answers))
            live.stop()
    print(
        f"two stages, {engine}, node scheduler {node_scheduler}, {num_requests} requests: "
        f"{1e3 * median(found):.3f} ms for a token "
        f"({1e3 * min(found):.3f} to {1e3 * max(found):.3f}); the engines alone, for one request: "
        f"{1e3 * alone_s:.3f} ms"
    )


def two_engines_alone(model: Path) -> float:
    """Seconds that a token of one request takes in two engines, in one process."""
    half = NUM_LAYERS // 2
    layers = [(0, half), (half, NUM_LAYERS)]
    engines = [make_engine("torch", spec) for spec in make_specs(model, layers, NUM_LAYERS)]
    times = []
    for _ in range(REPEATS):
        job = Job([7] * 10, NUM_TOKENS, route=((0, 0, half), (1, half, NUM_LAYERS)))
        began = time.perf_counter()
        serve(engines, [job])
        times.append((time.perf_counter() - began) / NUM_TOKENS)
    return median(times)


# -- throughput of one node ----------------------------------------------------------------------


@contextmanager
def served(scenario: str, model: Path, kv_bytes: int):
    """The address of `helixreal serve` with one torch node."""
    command = [
        sys.executable, "-m", "helixreal", "serve", scenario, "--local", "--engine", "torch",
        "--model", str(model), "--kv-memory", f"{kv_bytes} B", "--port", "8391",
    ]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        address = "http://127.0.0.1:8391"
        try:
            until = time.monotonic() + 120
            while True:
                try:
                    urllib.request.urlopen(f"{address}/v1/models", timeout=1).close()  # noqa: S310
                    break
                except OSError:
                    assert time.monotonic() < until, "it does not start"
                    time.sleep(0.2)
            yield address
        finally:
            process.terminate()
            process.wait(30)


def complete(address: str, prompt: list[int], stream: bool) -> None:
    """Ask for an answer, and read all of it."""
    body = {
        "model": "tiny", "prompt": prompt, "max_tokens": NUM_TOKENS, "temperature": 0,
        "ignore_eos": True, "stream": stream,
    }  # fmt: skip
    request = urllib.request.Request(  # noqa: S310
        f"{address}/v1/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=120) as answer:  # noqa: S310
        answer.read()


def through_the_cluster(address: str, asked: list[list[int]], *, stream: bool) -> float:
    """Seconds until all answers are complete."""
    threads = [Thread(target=complete, args=(address, prompt, stream)) for prompt in asked]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.perf_counter() - began


def alone(engine: Engine, asked: list[list[int]]) -> float:
    """Seconds that an engine without a cluster takes, in one continuous batch."""
    jobs = [Job(prompt, NUM_TOKENS, route=((0, 0, NUM_LAYERS),)) for prompt in asked]
    began = time.perf_counter()
    serve([engine], jobs)
    return time.perf_counter() - began


def throughput(num_requests: int, *, stream: bool) -> None:
    """Print the tokens per second of one node, behind the HTTP endpoint and of its engine.

    The two take turns, since other processes may use the machine; the ratio is of neighbours.
    """
    asked = prompts([20 + 3 * number for number in range(num_requests)])
    with TemporaryDirectory() as folder:
        model = write_tiny_llama(Path(folder) / "model")
        scenario = write_tiny_scenario(
            Path(folder), {"n0": [0, NUM_LAYERS]}, scheduler={"node": "vllm"}, physics="calibrated"
        )
        (spec,) = make_specs(model, [(0, NUM_LAYERS)], NUM_LAYERS, kv_memory_bytes=KV_BYTES)
        engine = make_engine("torch", replace(spec, max_context_tokens=512))
        with served(scenario, model, KV_BYTES) as address:
            through_the_cluster(address, asked, stream=stream)
            alone(engine, asked)
            pairs = [
                (through_the_cluster(address, asked, stream=stream), alone(engine, asked))
                for _ in range(2 * REPEATS)
            ]
        engine.close()
    num_tokens = num_requests * NUM_TOKENS
    ratios = sorted(own / served for served, own in pairs)
    print(
        f"one node, {num_requests} requests{' (streams)' if stream else ''}: "
        f"{num_tokens / median(served for served, _ in pairs):,.0f} tokens/s through helixreal "
        f"serve, {num_tokens / median(own for _, own in pairs):,.0f} of the engine alone; ratio "
        f"{median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}), of the fastest "
        f"{min(own for _, own in pairs) / min(served for served, _ in pairs):.2f}"
    )


def main() -> None:
    """Print the figures asked for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("figure", choices=["hops", "throughput"])
    parser.add_argument("--node-scheduler", default="vllm")
    parser.add_argument("--engine", choices=["torch", "emulated"], default="torch")
    parser.add_argument("--requests", type=int)
    parser.add_argument("--stream", action="store_true")
    arguments = parser.parse_args()
    if arguments.figure == "hops":
        hops(arguments.node_scheduler, arguments.requests or 1, arguments.engine)
    else:
        throughput(arguments.requests or 16, stream=arguments.stream)


if __name__ == "__main__":
    main()
