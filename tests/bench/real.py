"""What helixreal's wire and coordinator cost, and how close emulated runs come to simulations.

python tests/bench/real.py hop            one activation over one hop, against bare pyzmq
python tests/bench/real.py coordinator    iterations per second that a coordinator sustains
python tests/bench/real.py emulated       emulated clusters against their simulations
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import subprocess
import sys
import time
from array import array
from statistics import median

import zmq

from helixreal.coordinator.attempts import Generation
from helixreal.coordinator.live import NoLoad
from helixreal.coordinator.server import Cluster, ClusterSettings
from helixreal.net import encoding, messages
from helixreal.net.transport import Transport
from helixsim import load_scenario
from helixsim.control.load import Arrival

ACTIVATION_BYTES = 16_384
ROUNDS = 300
REPEATS = 41
ACTIVE_REQUESTS = 256
KEYS_AT_ONCE = 1
EMULATED = {
    "quickstart": ["workload.mode=online", "workload.mean_tokens_per_s=400"],
    "single24-llama2-70b-helix-online": [],
}
COMPARED = (
    ("decode_tokens_per_s", None),
    ("prompt_latency_s", "p50"),
    ("decode_latency_s", "p50"),
)


# -- one hop -----------------------------------------------------------------------------------


def activation() -> messages.Work:
    """One decode between two nodes, as a worker sends it."""
    return messages.Work(3, 20, 12.5, [messages.Pass(17, 900, 1, False, True)], [], 1)


class Loop:
    """Waits for messages and takes them until there are no more, as the loop of a worker."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._poller = zmq.Poller()
        self._poller.register(transport.inbox, zmq.POLLIN)

    def turn(self) -> list[tuple[messages.AnyMessage, list[messages.Frame]]]:
        """What has come."""
        self._poller.poll()
        return list(self._transport.received(500))

    def one(self) -> tuple[messages.AnyMessage, list[messages.Frame]]:
        """The next message, where only one can come."""
        while not (found := self.turn()):
            pass
        assert len(found) == 1
        return found[0]


def echo_ours(address: str) -> None:
    """Send every activation back."""
    with Transport("tcp://127.0.0.1:0") as transport:
        transport.connect("ping", address)
        transport.send("ping", messages.Hello("echo", transport.address, "", "x", "emulated"))
        payload = bytes(ACTIVATION_BYTES)
        loop = Loop(transport)
        while True:
            message, frames = loop.one()
            if isinstance(message, messages.Shutdown):
                return
            assert len(frames[0]) == len(payload)
            transport.send("ping", activation(), [payload])


def echo_bare(address: str) -> None:
    """The same with nothing but pyzmq."""
    context = zmq.Context()
    push, pull = context.socket(zmq.PUSH), context.socket(zmq.PULL)
    port = pull.bind_to_random_port("tcp://127.0.0.1")
    push.connect(address)
    push.send(str(port).encode())
    while len(message := pull.recv()) > 1:
        push.send(message)
    context.destroy(linger=0)


def bare_bytes() -> int:
    """Header and activation together."""
    return len(encoding.encode(activation(), [bytes(ACTIVATION_BYTES)])[0])


def hop() -> None:
    """Print the median ratio of our hop to a bare one, in alternating blocks."""
    spawn = multiprocessing.get_context("spawn")
    context = zmq.Context()
    pull, push = context.socket(zmq.PULL), context.socket(zmq.PUSH)
    port = pull.bind_to_random_port("tcp://127.0.0.1")
    bare = spawn.Process(target=echo_bare, args=(f"tcp://127.0.0.1:{port}",))
    bare.start()
    push.connect(f"tcp://127.0.0.1:{int(pull.recv())}")
    ratios, times = [], []
    with Transport("tcp://127.0.0.1:0") as transport:
        ours = spawn.Process(target=echo_ours, args=(transport.address,))
        ours.start()
        loop = Loop(transport)
        hello, _ = loop.one()
        assert isinstance(hello, messages.Hello)
        transport.connect("echo", hello.address)
        payload, whole = bytes(ACTIVATION_BYTES), bytes(bare_bytes())
        for _ in range(REPEATS):
            began = time.perf_counter()
            for _ in range(ROUNDS):
                push.send(whole)
                pull.recv()
            bare_s = (time.perf_counter() - began) / ROUNDS / 2
            began = time.perf_counter()
            for _ in range(ROUNDS):
                transport.send("echo", activation(), [payload])
                loop.one()
            ours_s = (time.perf_counter() - began) / ROUNDS / 2
            ratios.append(ours_s / bare_s)
            times.append((ours_s, bare_s))
        transport.send("echo", messages.Shutdown("done"))
        ours.join(5)
    push.send(b"x")
    bare.join(5)
    context.destroy(linger=0)
    print(
        f"one hop: {median(ratios):.2f} x bare pyzmq ({min(ratios):.2f} to {max(ratios):.2f}); "
        f"{1e6 * median(a for a, _ in times):.0f} against "
        f"{1e6 * median(b for _, b in times):.0f} microseconds"
    )


# -- the coordinator ---------------------------------------------------------------------------


def echo_nodes(address: str, names: list[str]) -> None:
    """Stand for all nodes: every pass is through at once, a few in each message."""
    with Transport("tcp://127.0.0.1:0") as transport:
        transport.connect("coordinator", address)
        for name in names:
            hello = messages.Hello(name, transport.address, "", name, "emulated")
            transport.send("coordinator", hello)
        loop, beat_s, welcomed = Loop(transport), 0.0, []
        while True:
            if time.monotonic() > beat_s:
                beat_s = time.monotonic() + 0.5
                for node, name in welcomed:
                    transport.send("coordinator", beat_of(node, name, len(names)))
            for message, _ in loop.turn():
                match message:
                    case messages.Assignment():
                        node = message.node
                        welcomed.append((node, names[node]))
                        transport.send("coordinator", messages.Ready(node, names[node], 10**6, 16))
                    case messages.Work():
                        keys = [each.key for each in message.passes]
                        for first in range(0, len(keys), KEYS_AT_ONCE):
                            some = keys[first : first + KEYS_AT_ONCE]
                            done = messages.Done(message.sender - 1, some, [7] * len(some), [])
                            transport.send("coordinator", done)
                    case messages.Shutdown():
                        return


def beat_of(node: int, name: str, num_nodes: int) -> messages.Heartbeat:
    """A worker's heartbeat with nothing in it but that it hears all others."""
    silences = [messages.PeerSilence(other, 0.0) for other in range(num_nodes)]
    return messages.Heartbeat(
        node, name, 0.0, 0, 0, 0, 0, 0, 0, None, 0.0, 0.0, 0, [], [], [], 0.0, silences
    )


def coordinator() -> None:
    """Print how many iterations a second a coordinator decides about and carries out."""
    scenario = load_scenario("quickstart", ["run.duration=1000s", "scheduler.kv.high_water_mark=1"])
    with Transport("tcp://127.0.0.1:0") as transport:
        cluster = Cluster(
            scenario, transport, ClusterSettings(is_emulated=False), load_generator=NoLoad()
        )
        spawn = multiprocessing.get_context("spawn")
        names = [worker.name for worker in cluster.membership.workers]
        nodes = spawn.Process(target=echo_nodes, args=(transport.address, names))
        nodes.start()
        cluster.wait_for_workers()
        cluster.begin()
        assert cluster.dispatcher is not None
        for _ in range(ACTIVE_REQUESTS):
            request = cluster.coordinator.create(Arrival(cluster.now, 10, 10_000))
            tokens = array("i", range(10))
            cluster.dispatcher.submit(request, Generation(tokens, 10), cluster.now)
        rates = []
        for _ in range(REPEATS // 5):
            count, began, cpu = (
                cluster.recorder.num_decode_tokens,
                time.monotonic(),
                time.process_time(),
            )
            while time.monotonic() < began + 1:
                cluster.poll_once()
            done = cluster.recorder.num_decode_tokens - count
            rates.append((done / (time.monotonic() - began), done / (time.process_time() - cpu)))
        active = len(cluster.coordinator.active)
        assert active == ACTIVE_REQUESTS
        cluster.close()
        nodes.join(5)
    print(
        f"coordinator: {median(a for a, _ in rates):,.0f} iterations/s by the clock, "
        f"{median(b for _, b in rates):,.0f} per second of its own computing; "
        f"{active} requests, {KEYS_AT_ONCE} in each message"
    )


# -- emulated against simulated ----------------------------------------------------------------


def emulated(
    time_scale: float, duration: str, physics: str, preset: str | None, only: str | None
) -> None:
    """Print how far emulated clusters of processes are from their simulations."""
    for name, overrides in EMULATED.items():
        if only not in (None, name):
            continue
        settings = [
            f"physics={physics}",
            f"run.duration={duration}",
            "run.warmup=60 s",
            *overrides,
            *([] if preset is None else [f"scheduler.preset={preset}"]),
        ]
        sets = [part for each in settings for part in ("--set", each)]
        found = []
        for program, more in (
            ("helixsim", []),
            ("helixreal", ["--local", "--time-scale", str(time_scale)]),
        ):
            command = [sys.executable, "-m", program, "run", name, *more, *sets, "--json"]
            output = subprocess.run(command, check=True, capture_output=True).stdout
            found.append(json.loads(output))
        real = found[1]
        figures = []
        for key, part in COMPARED:
            a, b = (each[key] if part is None else each[key][part] for each in found)
            figures.append(f"{key} {a:.3f} -> {b:.3f} ({b / a - 1:+.1%})")
        nodes = len(load_scenario(name).placement.layers)
        print(f"{name}, {physics}, {nodes} nodes, time scale {time_scale:g}: " + "; ".join(figures))
        print("  " + "; ".join(real["warnings"]) if real["warnings"] else "  no warnings")


def main() -> None:
    """Print the figures asked for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("figures", nargs="*", default=["hop", "coordinator", "emulated"])
    parser.add_argument("--time-scale", type=float, default=2.0)
    parser.add_argument("--duration", default="300 s")
    parser.add_argument("--physics", default="paper")
    parser.add_argument("--preset", choices=("published", "tuned"), help="of the scheduler")
    parser.add_argument("--only", choices=EMULATED, help="one of the scenarios")
    arguments = parser.parse_args()
    for name in arguments.figures:
        if name == "emulated":
            emulated(
                arguments.time_scale,
                arguments.duration,
                arguments.physics,
                arguments.preset,
                arguments.only,
            )
        else:
            {"hop": hop, "coordinator": coordinator}[name]()


if __name__ == "__main__":
    main()
