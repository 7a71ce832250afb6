"""A coordinator as a process of its own, which a test can freeze, kill and start again.

As a script: reads requests from standard input, one JSON object a line, and writes their ends to
standard output.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from threading import Thread

import yaml

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 40
QUICK = {"heartbeat_s": 0.1, "missing_s": 1.0}


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def write_inventory(folder, names, port, *, address="127.0.0.1", **more):
    """An inventory with all nodes on this machine."""
    inventory = {
        "schema": 1,
        "coordinator": f"127.0.0.1:{port}",
        "defaults": {"engine": "emulated"},
        "nodes": {name: {"address": address} for name in names},
    } | more
    file = folder / "hosts.yaml"
    file.write_text(yaml.safe_dump(inventory))
    return file


def start_worker(name, inventory, *more, **popen):
    command = ["worker", "--node", name, "--inventory", str(inventory), *more]
    return subprocess.Popen([sys.executable, "-m", "helixreal", *command], cwd=ROOT, **popen)


def processes(*words):
    """Process ids whose command line has all these words."""
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        with suppress(OSError):
            command = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
            if set(words) <= set(command):
                found.append(int(folder.name))
    return found


class CoordinatorProcess:
    """The process; `ends` has the number, the tokens and the end of each request."""

    def __init__(self, scenario, inventory=None, **settings):
        given = {"scenario": str(scenario), "inventory": inventory and str(inventory)}
        given["membership"] = QUICK | settings
        paths = [*map(str, (ROOT, ROOT / "tests", ROOT / "tests/real")), *sys.path]
        self.process = subprocess.Popen(
            [sys.executable, __file__, json.dumps(given)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
            text=True,
        )
        self.ends = {}
        self.ready = None
        self.report = None
        self._thread = Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self):
        for line in self.process.stdout:
            said = json.loads(line)
            if "ready" in said:
                self.ready = said
            elif "report" in said:
                self.report = said["report"]
            else:
                self.ends[said["number"]] = (said["tokens"], said["end"])

    def say(self, **what):
        self.process.stdin.write(json.dumps(what) + "\n")
        self.process.stdin.flush()

    def ask(self, number, prompt, max_tokens):
        self.say(number=number, prompt=prompt, max_tokens=max_tokens)

    def wait_for(self, condition, what):
        until = time.monotonic() + PATIENCE_S
        while not condition():
            assert self.process.poll() is None, "the coordinator has ended"
            assert time.monotonic() < until, f"waited in vain: {what}"
            time.sleep(0.02)

    def wait_until_ready(self):
        self.wait_for(lambda: self.ready, "all workers are ready")

    def reported(self):
        """What the coordinator says of itself now."""
        self.report = None
        self.say(report=True)
        self.wait_for(lambda: self.report, "the report")
        return self.report

    def __enter__(self):
        return self

    def __exit__(self, *_):
        with suppress(BrokenPipeError):
            self.process.stdin.close()
        if self.ready is None:
            self.process.terminate()
        self.process.wait(PATIENCE_S)
        self._thread.join(PATIENCE_S)
        self.process.stdout.close()


def main():
    """Serve the lines of standard input."""
    from live import Answer

    from helixreal.coordinator.live import LiveCluster, NoLoad
    from helixreal.coordinator.membership import MembershipSettings
    from helixreal.inventory import NodeEntry
    from helixreal.launch import Launch
    from helixreal.serving.frontend import GenerationRequest

    given = json.loads(sys.argv[1])
    overrides = ["scheduler.max_waiting=1000"]
    if given["inventory"] is None:
        launch = Launch.local(given["scenario"], overrides, 0, NodeEntry())
    else:
        file = Path(given["inventory"])
        launch = Launch.on(file, given["scenario"], overrides, 0, insecure=False)
    launch.membership = MembershipSettings(**given["membership"])

    def say(**what):
        sys.stdout.write(json.dumps(what) + "\n")
        sys.stdout.flush()

    class Asked(Answer):
        number = -1

        def __call__(self, event):
            super().__call__(event)
            if self.ends:
                say(number=self.number, tokens=self.tokens, end=repr(self.ends[0]))

    with launch.cluster(load_generator=NoLoad()) as cluster:
        launch.start(cluster)
        live = LiveCluster(cluster, "tiny", launch.max_context_tokens)
        live.start()
        names = [worker.name for worker in cluster.nodes]
        pids = {name: launch.workers.pid(name) for name in names} if launch.workers else {}
        say(ready=True, pids=pids)
        for line in sys.stdin:
            asked = json.loads(line)
            if "report" in asked:
                up = live.load().nodes_up
                coordinator = cluster.coordinator
                cut = sorted(coordinator.cut)
                say(report={"restarts": coordinator.num_restarts, "up": up, "cut": cut})
                continue
            answer = Asked(asked["prompt"], asked["max_tokens"])
            answer.number = asked["number"]
            live.submit(
                GenerationRequest(prompt=answer.prompt, max_tokens=answer.max_tokens), answer
            )
        live.stop()


if __name__ == "__main__":
    main()
