"""`helixreal serve` as a user has it: processes, real clients, signals, and what goes wrong."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import psutil
import pytest
import yaml
from serve_process import Process, serving
from tiny_scenario import write_tiny_scenario
from tiny_tokenizer import write_tiny_tokenizer

from helixreal.engines.emulated import made_up_token
from helixreal.frontends.process import FrontEndSettings
from helixreal.frontends.supervisor import FrontEndProcesses
from helixreal.serving.server import bind
from helixsim.errors import HelixError
from helixsim.recorded.recording import load_recorded_run

LONG = 6_000
"""An answer that does not end while a test runs."""


def write_scenario(folder):
    """One node, with room for many long answers; a token takes 5 ms."""
    file = write_tiny_scenario(
        folder, {"n0": [0, 8]}, scheduler={"node": "vllm"}, physics="calibrated"
    )
    box = yaml.safe_load((folder / "box.yaml").read_text())
    profile = box["llms"]["tiny"]
    profile["decode"] = {"tokens": [0, 1, 256], "ms": [0.0, 0.6, 3.0]}
    kv = profile["kv"]
    kv["token_layers"] = [20 * number for number in kv["token_layers"]]
    (folder / "box.yaml").write_text(yaml.safe_dump(box))
    return file


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    scenario = write_scenario(folder)
    tokenizer = write_tiny_tokenizer(folder)
    record = folder / "record"
    with serving(
        scenario, "--local", "--front-ends", "2", "--tokenizer", str(tokenizer),
        "--record", str(record),
    ) as (process, client):  # fmt: skip
        yield process, client
        assert process.end() == 0
    assert "Traceback" not in process.text
    recorded = load_recorded_run(record)
    assert recorded.requests  # of the tests that this process ran
    assert list(recorded.node_names.values()) == ["n0"]


class Stream(threading.Thread):
    """A stream in a thread: its tokens, its errors, and how it has ended."""

    def __init__(self, url, prompt, max_tokens):
        super().__init__(daemon=True)
        self.asked = {"prompt": prompt, "max_tokens": max_tokens, "stream": True}
        self.url, self.tokens, self.errors, self.end = url, [], [], None
        self.start()

    def run(self):
        try:
            with httpx.stream(
                "POST", f"{self.url}/v1/completions", json=self.asked, timeout=60
            ) as answer:
                for line in answer.iter_lines():
                    self.take(line)
                self.end = "closed"
        except httpx.HTTPError as error:
            self.end = type(error).__name__

    def take(self, line):
        if not line or line == "data: [DONE]":
            return
        event = json.loads(line.removeprefix("data: "))
        if "error" in event:
            self.errors.append(event["error"])
        else:
            self.tokens += event["choices"][0]["token_ids"]

    def begins(self):
        wait_until(lambda: self.tokens)
        return self

    def check(self):
        """Every token is right, as far as it has come."""
        prompt = self.asked["prompt"]
        assert self.tokens == [made_up_token(len(prompt) + i) for i in range(len(self.tokens))]


def wait_until(condition, patience_s=30):
    until = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.02)


def metric(client, name):
    """The sum of the samples of a name."""
    lines = client.get("/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.split("{")[0] == name)


def test_two_front_ends_answer_and_count_together(served):
    process, client = served
    assert len(process.front_ends()) == 2
    before = metric(client, "vllm:e2e_request_latency_seconds_count")
    with openai.OpenAI(base_url=f"{client.base_url}/v1", api_key="none") as user:
        for length in range(1, 4):
            found = user.completions.create(model="tiny", prompt=[1] * length, max_tokens=20)
            assert found.choices[0].token_ids == [made_up_token(length + i) for i in range(20)]
    streams = [Stream(client.base_url, [1] * length, 30) for length in range(1, 13)]
    for stream in streams:
        stream.join(30)
        assert stream.end == "closed"
        assert len(stream.tokens) == 30
        stream.check()
    # Each scrape is a new connection, which may come to either process.
    counts = set()
    for _ in range(8):
        with httpx.Client(base_url=client.base_url) as scraper:
            counts.add(metric(scraper, "vllm:e2e_request_latency_seconds_count"))
    assert counts == {before + 15}


def test_a_long_text_harms_nobody(served):
    """The text of a client keeps the interpreter lock of a front end, and of no other process."""
    process, client = served
    other = Stream(client.base_url, [1, 2, 3], LONG).begins()
    text = "abc def " * 125_000
    answer = client.post("/v1/completions", json={"prompt": text})
    assert answer.status_code == 400
    seen = len(other.tokens)
    wait_until(lambda: len(other.tokens) > seen + 20)
    other.check()
    assert client.get("/health").status_code == 200
    assert metric(client, "helix_node_up") == 1
    assert not any(word in process.text for word in ("lost", "silent", "left"))


def test_a_front_end_that_dies_is_replaced(served):
    process, client = served
    streams = [Stream(client.base_url, [1] * length, LONG).begins() for length in range(1, 9)]
    victim = process.front_ends()[0]
    victim.send_signal(signal.SIGKILL)
    process.wait_for(r"front end \d has ended with exit code -9: it starts again in 0.5 s")
    wait_until(lambda: len(process.front_ends()) == 2)
    broken = [stream for stream in streams if stream.end]
    going = [stream for stream in streams if not stream.end]
    # The requests of the dead one are cancelled; those of the other go on.
    wait_until(lambda: metric(client, "vllm:num_requests_running") <= len(going) + 1)
    for stream in going:
        seen = len(stream.tokens)
        wait_until(lambda stream=stream, seen=seen: len(stream.tokens) > seen)
    for stream in (*broken, *going):
        stream.check()
    found = client.post("/v1/completions", json={"prompt": [1], "max_tokens": 2})
    assert found.json()["choices"][0]["token_ids"] == [made_up_token(1), made_up_token(2)]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_ends_in_order_with_streams_under_way(tmp_path, number):
    scenario = write_scenario(tmp_path)
    with serving(scenario, "--local") as (process, client):
        streams = [Stream(client.base_url, [1] * length, LONG).begins() for length in (1, 2, 3)]
        assert len(process.front_ends()) == 1
        assert process.end(number) == 0
    for stream in streams:
        stream.join(10)
        assert stream.end == "closed"
        assert [error["message"] for error in stream.errors] == ["the cluster has stopped"]
        stream.check()
    listens, ready = process.lines
    assert "the coordinator listens at 127.0.0.1:" in listens
    assert ready.startswith("serving tiny at http://127.0.0.1:")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], r"56 connections are open, as many as allowed: new connections wait"),
        (["--max-connections", "999"], r"Too many open files with \d+ connections: new conn"),
    ],
)
def test_half_sent_requests_beyond_the_file_limit(tmp_path, arguments, message):
    """New ones wait, streams go on, and the log stays short."""
    scenario = write_scenario(tmp_path)

    def few_files():
        resource.setrlimit(resource.RLIMIT_NOFILE, (120, 120))

    with serving(scenario, "--local", *arguments, preexec_fn=few_files) as (process, client):
        stream = Stream(client.base_url, [1], LONG).begins()
        address = (client.base_url.host, client.base_url.port)
        held = []
        for _ in range(200):
            held.append(socket.create_connection(address))
            held[-1].sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\n")
        process.wait_for(message)
        seen = len(stream.tokens)
        wait_until(lambda: len(stream.tokens) > seen + 20)
        for each in held:
            each.close()
        assert client.get("/health").status_code == 200
        assert process.end() == 0
    assert "Traceback" not in process.text
    assert len(process.lines) == 3, process.text


def test_front_ends_elsewhere_and_a_coordinator_that_comes_back(tmp_path):
    scenario = write_scenario(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        door = f"127.0.0.1:{taken.getsockname()[1]}"
    site = Process("front-end", "--coordinator", door, "--port", "0")
    # Without front ends of its own, it does not need its port, which is taken.
    arguments = ["serve", scenario, "--local", "--front-ends", "0", "--front-end-address", door]
    blocker = socket.create_server(("127.0.0.1", 0))
    arguments += ["--port", str(blocker.getsockname()[1])]
    first = Process(*arguments)
    try:
        url = site.wait_for(r"serving tiny at (http://\S+)/v1")[1]
        with httpx.Client(base_url=url, timeout=60) as client:
            stream = Stream(url, [1, 2], LONG).begins()
            assert first.end() == 0
            stream.join(10)
            assert [error["message"] for error in stream.errors] == ["the cluster has stopped"]
            assert client.get("/health").status_code == 503
            answer = client.post("/v1/completions", json={"prompt": [1]})
            assert answer.status_code == 503
            assert "the coordinator cannot be reached" in answer.json()["error"]["message"]
            second = Process(*arguments)
            try:
                wait_until(lambda: client.get("/health").status_code == 200)
                answer = client.post("/v1/completions", json={"prompt": [1], "max_tokens": 1})
                assert answer.json()["choices"][0]["token_ids"] == [made_up_token(1)]
                stream = Stream(url, [1, 2], LONG).begins()
                assert site.end() == 0
                stream.join(10)
                (error,) = stream.errors
                assert error["message"] == "the front end has been stopped"
            finally:
                second.end()
    finally:
        first.end()
        blocker.close()
        assert site.end() == 0
    assert "Traceback" not in site.text + first.text


def test_a_front_end_ends_with_its_coordinator(tmp_path):
    """Also if the coordinator is killed and cannot say goodbye."""
    scenario = write_scenario(tmp_path)
    with serving(scenario, "--local") as (process, client), ThreadPoolExecutor(1) as thread:
        front_ends = process.front_ends()
        body = {"prompt": [1, 2, 3], "max_tokens": LONG}
        whole = thread.submit(client.post, "/v1/completions", json=body)
        stream = Stream(client.base_url, [1, 2], LONG).begins()
        process.end(signal.SIGKILL)
        _, alive = psutil.wait_procs(front_ends, timeout=10)
        assert not alive
        assert whole.result(10).status_code == 503
        stream.join(10)
    assert [error["message"] for error in stream.errors] == ["the cluster has stopped"]
    assert "graceful shutdown exceeded" not in process.text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--front-ends", "0"], "give --front-end-address"),
        (["--front-end-address", "0.0.0.0:0"], "give keys"),
        (["--tokenizer", "."], "there is no such file"),
    ],
)
def test_what_cannot_be_served(tmp_path, arguments, message):
    process = Process("serve", write_scenario(tmp_path), "--local", *arguments, cwd=tmp_path)
    assert process.code() == 2
    assert message in process.text


def test_ready_when_all_own_front_ends_are(tmp_path):
    settings = [FrontEndSettings(name=name, coordinator="ipc://x") for name in ("a", "b")]
    processes = FrontEndProcesses(settings, None, tmp_path, lambda name: None)
    assert [processes.listens(name) for name in ("site", "a", "a", "b", "b")] == [
        False, False, False, True, False,
    ]  # fmt: skip


def test_a_front_end_that_cannot_start(tmp_path, capfd):
    settings = FrontEndSettings(name="broken", coordinator="ipc://x", tokenizer=str(tmp_path))
    ended = []
    with bind("127.0.0.1", 0) as bound:
        processes = FrontEndProcesses([settings], bound, tmp_path, ended.append)
        processes.start()
        with pytest.raises(HelixError, match="broken has ended with exit code 1 before it could"):
            wait_until(processes.check)
        processes.stop()
    assert ended == ["broken"]
    assert "there is no such file" in capfd.readouterr().err


def test_a_front_end_that_hangs_is_replaced(tmp_path):
    settings = FrontEndSettings(name="a", coordinator=f"ipc://{tmp_path}/nobody")
    ended = []
    with bind("127.0.0.1", 0) as bound:
        processes = FrontEndProcesses([settings], bound, tmp_path, ended.append)
        processes.start()
        processes.listens("a")
        (before,) = processes.pids
        os.kill(before, signal.SIGSTOP)
        processes.replace("site")
        processes.check()
        assert processes.pids == [before]
        processes.replace("a")
        wait_until(lambda: processes.check() or processes.pids not in ([before], []))
        processes.stop()
    assert ended == ["a"]


def test_a_port_that_is_taken(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        process = Process("serve", write_scenario(tmp_path), "--local", "--port", port)
        assert process.code() == 2
        assert f"cannot listen at 127.0.0.1:{port}" in process.text
