"""A served cluster under faults of all kinds, and clients that check what they get.

The workers are supervised by `helixreal up --local`, the coordinator (`helixreal serve`) by this
process. Faults: workers killed or frozen, the coordinator killed or frozen, links between workers
cut, clients that leave in the middle of an answer, requests that no engine can answer.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from threading import Event, Lock, Thread

import yaml
from chaos_network import Loopback, Namespaces, has_namespaces
from coordinator_process import free_port, processes
from tiny_llama import VOCAB_SIZE, write_tiny_llama
from tiny_scenario import write_tiny_scenario

ROOT = Path(__file__).resolve().parents[2]
LAYERS = {"n0": [0, 4], "n1": [4, 8], "n2": [0, 4], "n3": [4, 8]}
LINKS = [("n0", "n1"), ("n0", "n3"), ("n2", "n1"), ("n2", "n3")]
HOME = "home"
START_S = 120.0
HANGS_AFTER_S = 90.0
REQUEST_S = 60
TOO_LARGE_TOKEN = 10**6
MOST_KILLS, KILLS_WITHIN_S = 4, 65.0
"""Of one worker."""
FAULTS = {
    "kill a worker": 3,
    "freeze a worker": 4,
    "cut a link": 4,
    "freeze the coordinator": 2,
    "kill the coordinator": 1,
}
"""What happens, and how often relative to others."""


@dataclass
class Findings:
    """Ends of requests, what was done, and what must not be."""

    ends: Counter = field(default_factory=Counter)
    faults: Counter = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    memory_mb: dict[str, list[float]] = field(default_factory=dict)


class ServedCluster:
    """The processes of a cluster."""

    def __init__(self, folder, network, node_scheduler):
        self.folder, self.network = folder, network
        model = write_tiny_llama(folder / "model")
        self.scenario = write_tiny_scenario(
            folder, LAYERS, scheduler={"node": node_scheduler} if node_scheduler else {}
        )
        self.address = f"{network.address(HOME)}:{free_port()}"
        self.http = (network.address(HOME), free_port())
        inventory = {
            "schema": 1,
            "coordinator": self.address,
            "defaults": {"engine": "torch", "model": str(model), "kv_memory": "8 MB"},
            "nodes": {name: {"address": network.address(name)} for name in LAYERS},
        }
        self.inventory = folder / "hosts.yaml"
        self.inventory.write_text(yaml.safe_dump(inventory))
        self._logs = ExitStack()
        self.coordinator = None
        self._ups = []

    def _start(self, where, log, *command):
        file = self._logs.enter_context((self.folder / log).open("ab"))
        return subprocess.Popen(
            [*self.network.prefix(where), sys.executable, "-m", "helixreal", *command],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
            stdout=file,
            stderr=file,
        )

    def start_coordinator(self):
        host, port = self.http
        self.coordinator = self._start(
            HOME,
            "coordinator.log",
            *("serve", self.scenario, "--inventory", str(self.inventory), "--insecure"),
            *("--host", host, "--port", str(port), "--request-timeout", f"{REQUEST_S} s"),
        )

    def __enter__(self):
        self.start_coordinator()
        # In namespaces, each `up` starts the worker of its own address; else one starts all.
        for name in LAYERS if self.network.can_cut else [HOME]:
            command = ("up", str(self.inventory), "--local", "--insecure")
            self._ups.append(self._start(name, f"up-{name}.log", *command))
        return self

    def __exit__(self, *_):
        for process in (self.coordinator, *self._ups):
            process.terminate()
        for process in (self.coordinator, *self._ups):
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._logs.close()

    def log(self):
        return "".join(
            file.read_text(errors="replace") for file in sorted(self.folder.glob("*.log"))
        )

    def worker_pid(self, name):
        """The process of a node's worker; None while there is none."""
        return next(iter(processes("--node", name, f"tcp://{self.address}")), None)

    def request(self, method, path, body=None, timeout_s=HANGS_AFTER_S):
        connection = http.client.HTTPConnection(*self.http, timeout=timeout_s)
        data = None if body is None else json.dumps(body)
        connection.request(method, path, data, {"Content-Type": "application/json"})
        return connection, connection.getresponse()

    def nodes_up(self):
        """Number of nodes that are up; 0 if the endpoint does not answer."""
        try:
            connection, response = self.request("GET", "/metrics", timeout_s=5)
            with closing(connection):
                text = response.read().decode()
        except (OSError, http.client.HTTPException):
            return 0
        return len(re.findall(r"^helix_node_up\{.*\} 1(?:\.0)?$", text, re.MULTILINE))

    def wait_until_up(self, seconds):
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if self.nodes_up() == len(LAYERS):
                return True
            time.sleep(0.2)
        return False


class Clients:
    """Streams that ask again and again, and compare the answers."""

    def __init__(self, cluster, findings, seed, count):
        self._cluster, self._findings = cluster, findings
        rng = Random(f"prompts {seed}")
        self.prompts = [
            ([rng.randrange(3, VOCAB_SIZE) for _ in range(rng.randrange(4, 60))], max_tokens)
            for max_tokens in (1, 2, 10, 20, 30, 40, 60, 80)
        ]
        self.expected = []
        self._stopping = Event()
        self._lock = Lock()
        self._threads = [
            Thread(target=self._run, args=(Random(f"{seed}/{number}"),), daemon=True)
            for number in range(count)
        ]

    def learn(self):
        """Ask once without faults; later answers are to be the same."""
        for number in range(len(self.prompts)):
            end, tokens = self._ask(self._body(number))
            assert end == "answer", f"without faults: {end}, {tokens}"
            self.expected.append(tokens)

    def check_all(self):
        """All prompts are answered right, now that there are no more faults."""
        for number, expected in enumerate(self.expected):
            end, tokens = self._ask(self._body(number))
            if (end, tokens) != ("answer", expected):
                self._findings.wrong.append(f"after all faults, prompt {number}: {end} {tokens}")

    def start(self):
        for thread in self._threads:
            thread.start()

    def stop(self):
        self._stopping.set()
        for thread in self._threads:
            thread.join(HANGS_AFTER_S + 30)
            if thread.is_alive():
                self._findings.wrong.append("a client hangs")

    def _body(self, number):
        prompt, max_tokens = self.prompts[number]
        return {
            "model": "tiny",
            "prompt": prompt,
            "max_tokens": max_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
        }

    def _ask(self, body, leave_after=None):
        """How an answer ended, and its tokens."""
        tokens = []
        try:
            connection, response = self._cluster.request("POST", "/v1/completions", body)
            with closing(connection):
                if response.status != 200:
                    response.read()
                    return f"status {response.status}", tokens
                return self._read(response, tokens, leave_after), tokens
        except TimeoutError:
            return "hangs", tokens
        except (OSError, http.client.HTTPException) as error:
            return f"connection: {type(error).__name__}", tokens

    def _read(self, response, tokens, leave_after):
        """Read a stream of events; how it ended."""
        for line in response:
            if line.startswith(b"data: [DONE]"):
                return "answer"
            if not line.startswith(b"data: "):
                continue
            event = json.loads(line[6:])
            if "error" in event:
                return f"error event: {event['error']['message']}"
            for choice in event["choices"]:
                tokens += choice.get("token_ids") or []
            if leave_after is not None and len(tokens) >= leave_after:
                return "left"
        return "connection: ended early"

    def _run(self, rng):
        while not self._stopping.is_set():
            number = rng.randrange(len(self.prompts))
            body, kind = self._body(number), rng.random()
            if kind < 0.05:
                body["prompt"] = [*body["prompt"], TOO_LARGE_TOKEN]
                end, _ = self._ask(body)
                self._note("poison", end, end not in ("hangs", "answer"), end)
                continue
            leave_after = rng.randrange(1, 10) if kind < 0.15 else None
            end, tokens = self._ask(body, leave_after)
            expected = self.expected[number]
            is_right = end != "hangs" and tokens == expected[: len(tokens)]
            if end == "answer":
                is_right = tokens == expected
            self._note("request", end, is_right, f"prompt {number}: {end}, {tokens} {expected}")
            if end.startswith(("connection", "status")):
                time.sleep(0.3)

    def _note(self, kind, end, is_right, what):
        with self._lock:
            self._findings.ends[f"{kind}: {end}"] += 1
            if not is_right:
                self._findings.wrong.append(f"{kind}: {what}")


class Monkey:
    """Does one thing after another to a cluster, for a time."""

    def __init__(self, cluster, findings, seed, longest_freeze_s):
        self._cluster, self._findings = cluster, findings
        self._rng = Random(f"faults {seed}")
        self._longest_s = longest_freeze_s
        self._thawing = []
        self._cut = set()
        self._kills_s = {}

    def run(self, seconds, pause_s=(1.0, 4.0)):
        until = time.monotonic() + seconds
        faults = [*FAULTS]
        if not self._cluster.network.can_cut:
            faults.remove("cut a link")
        weights = [FAULTS[fault] for fault in faults]
        next_s = time.monotonic()
        while time.monotonic() < until:
            self._keep_coordinator()
            if time.monotonic() >= next_s:
                (fault,) = self._rng.choices(faults, weights)
                self._do(fault)
                next_s = time.monotonic() + self._rng.uniform(*pause_s)
            time.sleep(0.1)
        for thread in self._thawing:
            thread.join()
        self._keep_coordinator()

    def _keep_coordinator(self):
        code = self._cluster.coordinator.poll()
        if code is None:
            return
        if code != -signal.SIGKILL:
            self._findings.wrong.append(f"the coordinator has ended with exit code {code}")
        self._cluster.start_coordinator()

    def _do(self, fault):
        rng, cluster = self._rng, self._cluster
        name, link = rng.choice([*LAYERS]), rng.choice(LINKS)
        freeze_s = rng.uniform(1, self._longest_s)
        self._findings.faults[fault] += 1
        if fault == "kill a worker":
            # `up` starts a worker again five times within a minute.
            now = time.monotonic()
            recent = [at for at in self._kills_s.get(name, ()) if now - at < KILLS_WITHIN_S]
            if len(recent) == MOST_KILLS:
                return
            self._kills_s[name] = [*recent, now]
            self._signal(cluster.worker_pid(name), signal.SIGKILL)
        elif fault == "freeze a worker":
            self._freeze(cluster.worker_pid(name), freeze_s)
        elif fault == "freeze the coordinator":
            self._freeze(cluster.coordinator.pid, freeze_s / 2)
        elif fault == "kill the coordinator":
            self._signal(cluster.coordinator.pid, signal.SIGKILL)
            cluster.coordinator.wait()
        elif link not in self._cut:
            self._cut.add(link)
            cluster.network.cut(*link)
            self._later(freeze_s, self._heal, link)

    def _heal(self, link):
        self._cluster.network.heal(*link)
        self._cut.discard(link)

    def _signal(self, pid, number):
        if pid is not None:
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def _freeze(self, pid, seconds):
        self._signal(pid, signal.SIGSTOP)
        self._later(seconds, self._signal, pid, signal.SIGCONT)

    def _later(self, seconds, act, *arguments):
        def run():
            time.sleep(seconds)
            act(*arguments)

        thread = Thread(target=run, daemon=True)
        thread.start()
        self._thawing.append(thread)


def resident_mb(pid):
    """Memory of a process; None if it has ended."""
    with suppress(OSError, IndexError):
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6
    return None


class MemoryWatch:
    """Samples the memory of every process of a cluster, every few seconds."""

    def __init__(self, cluster, findings):
        self._cluster, self._findings = cluster, findings
        self._stopping = Event()
        self._thread = Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self):
        while not self._stopping.wait(2.0):
            pids = {HOME: self._cluster.coordinator.pid}
            pids |= {name: self._cluster.worker_pid(name) for name in LAYERS}
            for name, pid in pids.items():
                if pid is not None and (used := resident_mb(pid)):
                    key = f"{name} {pid}"
                    self._findings.memory_mb.setdefault(key, []).append(round(used, 1))

    def stop(self):
        self._stopping.set()
        self._thread.join()


def run_chaos(
    folder,
    seconds,
    *,
    seed=0,
    streams=16,
    node_scheduler=None,
    longest_freeze_s=20.0,
    namespaces=None,
    report=lambda text: None,
):
    """Run a cluster under faults for a time; what was found."""
    findings = Findings()
    use = has_namespaces() if namespaces is None else namespaces
    network = (Namespaces if use else Loopback)([HOME, *LAYERS])
    with network, ServedCluster(folder, network, node_scheduler) as cluster:
        report("starting" + ("" if use else "; without network namespaces no link is cut"))
        assert cluster.wait_until_up(START_S), f"the cluster does not start:\n{cluster.log()}"
        clients = Clients(cluster, findings, seed, streams)
        clients.learn()
        memory = MemoryWatch(cluster, findings)
        clients.start()
        report(f"{seconds:g} s of faults under {streams} streams")
        Monkey(cluster, findings, seed, longest_freeze_s).run(seconds)
        report("no more faults")
        if not cluster.wait_until_up(START_S):
            findings.wrong.append(f"{cluster.nodes_up()} of {len(LAYERS)} nodes are back")
        clients.stop()
        clients.check_all()
        memory.stop()
    if "Traceback" in cluster.log():
        findings.wrong.append("a traceback in the logs")
    return findings
