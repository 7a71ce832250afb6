"""`helixreal run`, `coordinator`, `worker` and `down` as processes: results, ends, mistakes."""

from __future__ import annotations

import gzip
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import yaml
from live import has_gone
from typer.testing import CliRunner

from helixreal.cli import app

ROOT = Path(__file__).parents[2]
PATIENCE_S = 60
LISTENING = (  # a shell's background jobs, as tests may be, ignore Ctrl-C; this one must not
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "from helixreal.cli import main; main()"
)
SAYING = (  # and the coordinator closes a pipe when it has some tokens
    "import os, sys; from helixreal.coordinator.dispatcher import Dispatcher as Each; "
    "pipe, take = [int(sys.argv.pop())], Each.passes_done; "
    "Each.passes_done = lambda self, *given: (take(self, *given), "
    f"self.num_output_tokens > 20 and pipe and os.close(pipe.pop())); {LISTENING}"
)
SHORT = [
    *("--set", "run.duration=20 s"),
    *("--set", "run.warmup=4 s"),
    *("--set", "workload.mode=online"),
    *("--set", "workload.mean_tokens_per_s=400"),
]


def start(*arguments, code=LISTENING, **settings):
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        **settings,
    )


def start_saying(*arguments):
    """A coordinator, and a function that waits until it serves requests."""
    heard, said = os.pipe()
    process = start(*arguments, said, code=SAYING, pass_fds=(said,))
    os.close(said)

    def wait():
        readable, _, _ = select.select([heard], [], [], PATIENCE_S)
        os.close(heard)
        assert readable, "no request is served"
        assert process.poll() is None, "the coordinator has ended"

    return process, wait


def workers_of(process):
    """The processes that a run has started."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    return [int(pid) for pid in children.read_text().split()]


def wait_for(condition, what):
    until = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < until, f"waited in vain: {what}"
        time.sleep(0.1)


def free_ports(count):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def test_results_are_those_of_a_run_and_of_a_recording(tmp_path):
    out = tmp_path / "out"
    process = start("run", "quickstart", "--local", "--time-scale", 5, *SHORT, "-o", out)
    stdout, stderr = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0
    assert re.fullmatch(r"coordinator: the coordinator listens at 127\.0\.0\.1:\d+\n", stderr)
    assert stdout.endswith(f"results in {out}\n")
    assert sorted(file.name for file in out.iterdir()) == [
        "events.csv.gz",
        "links.parquet",
        "manifest.json",
        "nodes.json",
        "nodes.parquet",
        "requests.parquet",
        "routes.jsonl.gz",
        "summary.json",
        "timeline.parquet",
    ]
    summary = json.loads((out / "summary.json").read_text())
    assert summary["decode_tokens_per_s"] > 0
    assert not summary["partial"]
    events = pd.read_csv(out / "events.csv.gz")
    assert list(events) == [
        "time_s",
        "query",
        "direction",
        "phase",
        "context_tokens",
        "processed_tokens",
    ]
    prompts = events[events.phase == "prompt"]
    requests = pd.read_parquet(out / "requests.parquet").set_index("request")
    # A prefill leaves as a stream of chunks, and its last chunk comes back.
    left = prompts[prompts.direction == "out"].groupby("query").processed_tokens
    assert left.size().max() > 1
    for query, tokens in left.sum().items():
        assert tokens == requests.prompt_tokens[query]
    came_back = prompts[prompts.direction == "in"]
    assert not came_back["query"].duplicated().any()
    for query, tokens in zip(
        came_back["query"], came_back.context_tokens + came_back.processed_tokens, strict=True
    ):
        assert tokens == requests.prompt_tokens[query]
    back = events[(events.direction == "in") & (events.phase == "decode")]
    # A decode that is on its way when the run ends has left, and counts for no request.
    assert (back.groupby("query").size() <= requests.decode_tokens + 1).all()
    lines = gzip.decompress((out / "routes.jsonl.gz").read_bytes()).splitlines()
    routes = [json.loads(line) for line in lines]
    names = json.loads((out / "nodes.json").read_text())
    for route in routes:
        assert route["nodes"][-1] == 0
        assert route["start_layers"][0] == 0
        assert route["end_layers"][-2] == 60
        shown = [
            f"{names[str(node)]}[{start}:{end}]"
            for node, start, end in zip(
                route["nodes"][:-1], route["start_layers"], route["end_layers"], strict=False
            )
        ]
        assert " ".join(shown) == requests.route[route["query"]]
    manifest = json.loads((out / "manifest.json").read_text())
    assert set(manifest["real"]["nodes"]) == set(names.values()) - {"coordinator"}


def figures_of(program, *arguments):
    """The summary of a run of `helixsim` or `helixreal`."""
    command = [sys.executable, "-m", program, "run", "quickstart", *arguments, "--json"]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True, capture_output=True
    )
    return json.loads(done.stdout)


def compared(summary):
    """The throughput, and the medians of the latencies."""
    latencies = ("prompt_latency_s", "decode_latency_s")
    return {name: summary[name]["p50"] for name in latencies} | {
        "decode_tokens_per_s": summary["decode_tokens_per_s"]
    }


@pytest.mark.long
def test_an_emulated_run_of_the_tuned_preset_comes_close_to_its_simulation():
    # Long enough for a hundred requests: the median over a few depends on single routes.
    settings = [
        *("--set", "scheduler.preset=tuned"),
        *("--set", "run.duration=300 s"),
        *("--set", "run.warmup=60 s"),
        *("--set", "workload.mode=online"),
        *("--set", "workload.mean_tokens_per_s=400"),
    ]
    expected = compared(figures_of("helixsim", *settings))
    # A machine with other work may be too slow for the first run, and somewhat late in the second;
    # a wrong split or missing batches double the latencies.
    for time_scale, latency_off in (("6", 0.1), ("3", 0.25)):
        close = {
            "decode_tokens_per_s": 0.03,
            "prompt_latency_s": latency_off,
            "decode_latency_s": latency_off,
        }
        found = compared(figures_of("helixreal", "--local", "--time-scale", time_scale, *settings))
        off = {name: found[name] / expected[name] - 1 for name in close}
        if all(abs(off[name]) <= close[name] for name in close):
            return
    pytest.fail(f"relative differences from the simulation: {off}")


@pytest.mark.parametrize("how", ["Ctrl-C", "SIGTERM"])
def test_an_interrupted_run_keeps_what_was_done_and_leaves_no_process(tmp_path, how):
    out = tmp_path / "out"
    process, wait_until_it_serves = start_saying("run", "quickstart", "--local", "-o", out)
    wait_until_it_serves()
    started = workers_of(process)
    assert len(started) == 6
    if how == "Ctrl-C":
        os.killpg(process.pid, signal.SIGINT)
    else:
        process.terminate()
    _, stderr = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130, stderr
    assert "Traceback" not in stderr
    assert all(map(has_gone, started))
    assert json.loads((out / "summary.json").read_text())["partial"]


def test_workers_leave_when_the_coordinator_is_killed():
    process, wait_until_it_serves = start_saying("run", "quickstart", "--local")
    wait_until_it_serves()
    started = workers_of(process)
    assert len(started) == 6
    process.kill()
    process.communicate(timeout=PATIENCE_S)
    wait_for(lambda: all(map(has_gone, started)), "all workers leave")


def inventory(folder, nodes):
    ports = free_ports(len(nodes) + 1)
    file = folder / "hosts.yaml"
    data = {
        "schema": 1,
        "coordinator": f"127.0.0.1:{ports[0]}",
        "keys": "keys",
        "nodes": {
            node: {"address": f"127.0.0.1:{port}"}
            for node, port in zip(nodes, ports[1:], strict=True)
        },
    }
    file.write_text(yaml.safe_dump(data))
    return file


def test_a_cluster_with_keys_in_any_order_ends_when_told(tmp_path):
    nodes = ["a100-0", "a100-1", "l4-pair-0", "l4-pair-1", "t4-pair-0", "t4-pair-1"]
    file = inventory(tmp_path, nodes)
    made = CliRunner().invoke(app, ["keys", "--inventory", str(file), "-o", str(tmp_path / "keys")])
    assert made.exit_code == 0, made.output
    shown = CliRunner().invoke(app, ["up", str(file)]).stdout
    assert shown.count("helixreal worker --node") == 6
    early = [start("worker", "--node", node, "--inventory", file) for node in nodes[:3]]
    time.sleep(1)
    home, wait_until_it_serves = start_saying(
        "coordinator", "quickstart", "--inventory", file, "--json"
    )
    late = [start("worker", "--node", node, "--inventory", file) for node in nodes[3:]]
    wait_until_it_serves()
    down = start("down", "--inventory", file)
    assert down.communicate(timeout=PATIENCE_S) == ("", "")
    stdout, stderr = home.communicate(timeout=PATIENCE_S)
    assert home.returncode == 130, stderr
    summary = json.loads(stdout)
    assert summary["partial"]
    assert summary["requests"]["arrived"] > 0
    for worker in (*early, *late):
        _, stderr = worker.communicate(timeout=PATIENCE_S)
        assert worker.returncode == 0, stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "quickstart"], "add --local"),
        (["run", "nothing.yaml", "--local"], "nothing.yaml"),
        (["run", "quickstart", "--local", "--engine", "torch"], "needs a model"),
        (["run", "quickstart", "--local", "--engine", "torch", "--model", "no"], "no/config.json"),
        (
            ["run", "quickstart", "--local", "--engine", "torch", "--time-scale", "2"],
            "only emulated engines",
        ),
        (["worker", "--node", "n"], "either --coordinator or --inventory"),
        (["worker", "--node", "x", "--inventory", "hosts.yaml"], "no node 'x'"),
        (["coordinator", "quickstart", "--inventory", "hosts.yaml"], "no node 'a100-1'"),
        (["coordinator", "quickstart", "--inventory", "absent.yaml"], "absent.yaml"),
        (["down"], "an address or --inventory"),
        (["serve", "quickstart"], "--local or --inventory"),
    ],
)
def test_mistakes_get_one_clear_error(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    inventory(tmp_path, ["a100-0"])
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2, result.output
    assert message in result.output
    assert result.output.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hosts.yaml"]


def test_a_taken_port_is_named(tmp_path, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        arguments = ["worker", "--node", "n", "--coordinator", "127.0.0.1:1"]
        result = CliRunner().invoke(app, [*arguments, "--listen", f"127.0.0.1:{port}"])
    assert result.exit_code == 2
    assert f"cannot listen at tcp://127.0.0.1:{port}" in result.output


def test_a_trace_is_sent_from_its_first_request_with_the_turns_of_its_sessions(tmp_path):
    trace, out = tmp_path / "trace.jsonl", tmp_path / "out"
    trace.write_text(
        '{"session_id": 1, "timestamp": 1715299200000, "input_length": 20, "output_length": 3}\n'
        '{"session_id": 1, "delay": 500, "input_length": 40, "output_length": 2}\n'
        '{"timestamp": 1715299206000, "input_length": 30, "output_length": 2}\n'
    )
    process = start("replay", trace, "quickstart", "--local", "--time-scale", 5, "-o", out)
    _, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, errors
    assert "note: later turns of sessions are sent until 7 s" in errors
    requests = pd.read_parquet(out / "requests.parquet").set_index("prompt_tokens")
    assert list(requests.status) == ["completed"] * 3
    assert requests.arrival_s[40] == pytest.approx(requests.end_s[20] + 0.5)
    assert requests.arrival_s[30] == pytest.approx(requests.arrival_s[20] + 6.0)
