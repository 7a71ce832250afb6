"""What helixreal's wire and coordinator cost, and how close emulated runs come to simulations.

python tests/bench/real.py hop            one activation over one hop, against bare pyzmq
python tests/bench/real.py coordinator    iterations per second that a coordinator sustains
python tests/bench/real.py emulated       emulated clusters against their simulations
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from statistics import median

import zmq

from helixreal import wire
from helixreal.transport import Transport

ACTIVATION_BYTES = 16_384
ROUNDS = 300
REPEATS = 41
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


def activation() -> wire.Work:
    """One decode between two nodes, as a worker sends it."""
    return wire.Work(3, 20, 12.5, [wire.Pass(17, 900, 1, False, True)], [], 1)


class Loop:
    """Waits for messages and takes them until there are no more, as the loop of a worker."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._poller = zmq.Poller()
        self._poller.register(transport.inbox, zmq.POLLIN)

    def turn(self) -> list[tuple[wire.AnyMessage, list[wire.Frame]]]:
        """What has come."""
        self._poller.poll()
        return list(self._transport.received(500))

    def one(self) -> tuple[wire.AnyMessage, list[wire.Frame]]:
        """The next message, where only one can come."""
        while not (found := self.turn()):
            pass
        assert len(found) == 1
        return found[0]


def echo_ours(address: str) -> None:
    """Send every activation back."""
    with Transport("tcp://127.0.0.1:0") as transport:
        transport.connect("ping", address)
        transport.send("ping", wire.Hello("echo", transport.address, "", "x", "emulated"))
        payload = bytes(ACTIVATION_BYTES)
        loop = Loop(transport)
        while True:
            message, frames = loop.one()
            if isinstance(message, wire.Farewell):
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
    return len(wire.encode(activation(), [bytes(ACTIVATION_BYTES)])[0])


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
        assert isinstance(hello, wire.Hello)
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
        transport.send("echo", wire.Farewell("done"))
        ours.join(5)
    push.send(b"x")
    bare.join(5)
    context.destroy(linger=0)
    print(
        f"one hop: {median(ratios):.2f} x bare pyzmq ({min(ratios):.2f} to {max(ratios):.2f}); "
        f"{1e6 * median(a for a, _ in times):.0f} against "
        f"{1e6 * median(b for _, b in times):.0f} microseconds"
    )


def main() -> None:
    """Print the figures asked for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("figures", nargs="*", default=["hop", "coordinator", "emulated"])
    arguments = parser.parse_args()
    for name in arguments.figures:
        {"hop": hop}[name]()


if __name__ == "__main__":
    main()
