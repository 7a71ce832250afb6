"""Tokens per second through `helixreal serve` with emulated workers: alternating runs of two trees.

    python tests/bench/endpoint.py [--against ../before] [--front-ends N] [--streams 128]
        [--repeats 5] [--seconds 8]
    python tests/bench/endpoint.py --memory 300

Each run starts the server of one tree, keeps that many streams open for a while and counts their
tokens; the CPU time of each of its processes is printed, too, which depends less on what else the
machine does. The client is part of the load: it reads raw sockets.
With --memory, one run of that many seconds prints the memory of every process ten times.
With an earlier commit to compare: git worktree add ../before COMMIT.
"""

from __future__ import annotations

import argparse
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import psutil
import yaml

HERE = Path(__file__).parents[2]
sys.path.insert(0, str(HERE / "tests" / "real"))

from tiny_scenario import write_tiny_scenario  # noqa: E402

MAX_TOKENS = 400
SETTLING_S = 3.0


def write_scenario(folder: Path, node_scheduler: str) -> str:
    """A fast node: a step of 128 decodes takes 0.8 ms."""
    file = write_tiny_scenario(
        folder, {"n0": [0, 8]}, scheduler={"node": node_scheduler}, physics="calibrated"
    )
    box = yaml.safe_load((folder / "box.yaml").read_text())
    profile = box["llms"]["tiny"]
    profile["decode"] = {"tokens": [0, 1, 256], "ms": [0.0, 0.02, 0.2]}
    profile["batch_limits"]["max_decode_tokens"] = 512
    profile["kv"]["token_layers"] = [64 * number for number in profile["kv"]["token_layers"]]
    (folder / "box.yaml").write_text(yaml.safe_dump(box))
    return file


@dataclass
class Figures:
    """One run: tokens per second, and CPU time per token of each kind of process, in us."""

    tokens_per_s: float
    cpu_us: dict[str, float]


@contextmanager
def server(tree: Path, scenario: str, more: list[str]) -> Iterator[tuple[psutil.Process, int]]:
    """The server of a tree, and its port."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "helixreal", "serve", scenario, "--local"]
    with subprocess.Popen(
        [*command, "--port", str(port), *more],
        cwd=tree,
        env=os.environ | {"PYTHONPATH": str(tree)},
        stderr=sys.stderr,
    ) as process:
        try:
            until = time.monotonic() + 60
            while True:
                try:
                    socket.create_connection(("127.0.0.1", port), 1).close()
                    break
                except OSError:
                    assert time.monotonic() < until, "it does not start"
                    time.sleep(0.1)
            yield psutil.Process(process.pid), port
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(30)


def kind_of(process: psutil.Process) -> str:
    """What a process of the server does."""
    command = " ".join(process.cmdline())
    if "frontends.process" in command:
        return "front ends"
    return "workers" if " worker " in command else "coordinator"


def cpu_s(processes: list[psutil.Process]) -> dict[str, float]:
    """CPU time so far, by kind of process."""
    found: dict[str, float] = {}
    for process in processes:
        times = process.cpu_times()
        kind = kind_of(process)
        found[kind] = found.get(kind, 0.0) + times.user + times.system
    return found


class Streams:
    """Open streams: each asks again when its answer is complete; counts tokens."""

    def __init__(self, port: int, count: int) -> None:
        self._selector = selectors.DefaultSelector()
        body = json.dumps(
            {"prompt": [1] * 8, "max_tokens": MAX_TOKENS, "stream": True, "ignore_eos": True}
        ).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        self._request = head.encode() + body
        self.tokens = 0
        for _ in range(count):
            connection = socket.create_connection(("127.0.0.1", port), 30)
            connection.sendall(self._request)
            self._selector.register(connection, selectors.EVENT_READ)

    def read(self, seconds: float) -> None:
        """Read for a time."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            for key, _ in self._selector.select(left):
                connection: socket.socket = key.fileobj  # type: ignore[assignment]
                part = connection.recv(1 << 18)
                assert part, "the server has closed a stream"
                self.tokens += part.count(b'"finish_reason"')  # each token has an event
                if b"[DONE]" in part:
                    connection.sendall(self._request)

    def close(self) -> None:
        """Close all streams."""
        for key in list(self._selector.get_map().values()):
            key.fileobj.close()  # type: ignore[union-attr]
        self._selector.close()


def run(tree: Path, scenario: str, more: list[str], num_streams: int, seconds: float) -> Figures:
    """Measure one run."""
    with server(tree, scenario, more) as (main, port):
        streams = Streams(port, num_streams)
        streams.read(SETTLING_S)
        processes = [main, *main.children(recursive=True)]
        before, streams.tokens = cpu_s(processes), 0
        own = time.process_time()
        began = time.monotonic()
        streams.read(seconds)
        elapsed, after = time.monotonic() - began, cpu_s(processes)
        client = time.process_time() - own
        tokens = streams.tokens
        streams.close()
    cpu = {kind: 1e6 * (after[kind] - before[kind]) / tokens for kind in after}
    return Figures(tokens / elapsed, cpu | {"client": 1e6 * client / tokens})


def memory(scenario: str, more: list[str], num_streams: int, seconds: float) -> None:
    """Print the resident memory of each process, and the tokens served so far."""
    with server(HERE, scenario, more) as (main, port):
        streams = Streams(port, num_streams)
        streams.read(SETTLING_S)
        for _ in range(10):
            streams.read(seconds / 10)
            parts = [
                f"{kind_of(each)} {each.memory_info().rss / 1e6:.1f} MB"
                for each in [main, *main.children(recursive=True)]
            ]
            print(f"{streams.tokens:>12,} tokens: {', '.join(parts)}", flush=True)
        streams.close()


def shown(name: str, runs: list[Figures]) -> str:
    """A row: medians over runs."""
    rates = [each.tokens_per_s for each in runs]
    kinds = runs[0].cpu_us
    cpu = ", ".join(f"{kind} {median(r.cpu_us[kind] for r in runs):.0f}" for kind in kinds)
    return (
        f"{name}: {median(rates):,.0f} tokens/s ({min(rates):,.0f} to {max(rates):,.0f}); "
        f"CPU time per token in us: {cpu}"
    )


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--against", type=Path)
    parser.add_argument("--front-ends", type=int, default=1)
    parser.add_argument("--streams", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--node-scheduler", default="vllm")
    parser.add_argument("--memory", type=float, metavar="SECONDS")
    arguments = parser.parse_args()
    more = ["--front-ends", str(arguments.front_ends)]
    trees = {"here": (HERE, more)}
    if arguments.against is not None:
        trees["against"] = (arguments.against.resolve(), [])
    runs: dict[str, list[Figures]] = {name: [] for name in trees}
    with TemporaryDirectory() as folder:
        scenario = write_scenario(Path(folder), arguments.node_scheduler)
        if arguments.memory is not None:
            memory(scenario, more, arguments.streams, arguments.memory)
            return
        for _ in range(arguments.repeats):
            for name, (tree, options) in trees.items():
                found = run(tree, scenario, options, arguments.streams, arguments.seconds)
                runs[name].append(found)
    for name, found_runs in runs.items():
        print(shown(name, found_runs))
    if arguments.against is not None:
        pairs = zip(runs["here"], runs["against"], strict=True)
        ratios = sorted(here.tokens_per_s / other.tokens_per_s for here, other in pairs)
        print(f"ratio {median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})")


if __name__ == "__main__":
    main()
