"""Front ends and the coordinator's door, in one process, over real sockets."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from contextlib import contextmanager
from types import SimpleNamespace

import msgspec
import pytest
import zmq

from helixreal.engines.engine import Sampling
from helixreal.frontends import door as door_module
from helixreal.frontends import wire
from helixreal.frontends.door import Door
from helixreal.frontends.remote import Patience, RemoteFrontend
from helixreal.net.encoding import WireError
from helixreal.net.transport import Keys, make_keys
from helixreal.serving.frontend import Failed, Finished, GenerationRequest, Load, Refused, Token
from helixsim.errors import InputError

LOAD = Load(
    running=3,
    waiting=2,
    kv_share=0.5,
    nodes_up={"n0": True},
    prompt_tokens=7,
    output_tokens=8,
    completed=9,
    failed=1,
    refused=2,
)
REQUEST = GenerationRequest(
    prompt=[5, 6, 7],
    max_tokens=9,
    stop_tokens=frozenset({1, 2}),
    sampling=Sampling(temperature=0.5, top_p=0.9, seed=2**62),
)


class Intake:
    """A cluster that answers every token of a prompt with the same token."""

    model_name = "parrot"
    max_context_tokens = 100
    vocabulary = 256

    def __init__(self):
        self.asked, self.cancelled, self.listeners = [], [], {}
        self.is_ready = True
        self.holds = False

    def take(self, generation, listener):
        index = len(self.asked)
        self.asked.append(generation)
        if len(generation.prompt) > 50:
            listener(Refused("too long", None))
            return -1
        self.listeners[index] = listener
        if not self.holds:
            for token in generation.prompt:
                listener(Token(token))
            listener(Finished("stop"))
        return index

    def cancel(self, index):
        self.cancelled.append(index)

    def fail_all(self, reason):
        for listener in self.listeners.values():
            listener(Failed(reason))

    def load(self):
        return LOAD


class Coordinator:
    """A door in a thread, with its loop; `pause` stops the loop for a while."""

    def __init__(self, intake, address, keys=None, silence_s=10.0):
        self.intake = intake
        self._poller = zmq.Poller()
        self._acts = {}
        self.door = Door(intake, self._watch, silence_s=silence_s)
        self.address = address
        if address.startswith("ipc"):
            self.door.open_local(address)
        else:
            self.address = self.door.open(address, keys, insecure=False)
        self.is_paused = self.is_over = False
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _watch(self, socket, act):
        self._acts[socket] = act
        self._poller.register(socket, zmq.POLLIN)

    def _run(self):
        while not self.is_over:
            if self.is_paused:
                time.sleep(0.01)
                continue
            for socket, _ in self._poller.poll(10):
                self._acts[socket]()
            self.door.turn()
        self.door.close()

    def end(self):
        self.is_over = True
        self._thread.join(10)
        assert not self._thread.is_alive()


@contextmanager
def coordinator(intake, address, **settings):
    made = Coordinator(intake, address, **settings)
    try:
        yield made
    finally:
        made.end()


@pytest.fixture
def address(tmp_path):
    return f"ipc://{tmp_path}/door"


async def until(condition):
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("waited in vain")


@contextmanager
def closing(frontend):
    try:
        yield frontend
    finally:
        frontend.close()


def linked(body, *arguments, **settings):
    """Run a coroutine function with a connected front end."""

    async def main():
        with closing(RemoteFrontend(*arguments, **settings)) as frontend:
            await asyncio.wait_for(frontend.connect(), 10)
            await body(frontend)

    asyncio.run(main())


def test_a_request_and_its_events(address):
    intake = Intake()

    async def body(frontend):
        assert (frontend.model_name, frontend.max_context_tokens) == ("parrot", 100)
        heard, refused = [], []
        frontend.submit(REQUEST, heard.append)
        await until(lambda: len(heard) == 4)
        assert heard == [Token(5), Token(6), Token(7), Finished("stop")]
        (asked,) = intake.asked
        assert list(asked.prompt) == REQUEST.prompt
        assert asked.stop_tokens == REQUEST.stop_tokens
        assert (asked.sampling, asked.max_tokens) == (REQUEST.sampling, 9)
        frontend.submit(GenerationRequest(prompt=[1] * 60, max_tokens=1), refused.append)
        await until(lambda: refused)
        assert refused == [Refused("too long", None)]
        await until(lambda: frontend.is_ready)
        assert frontend.load() == LOAD

    with coordinator(intake, address):
        linked(body, address, "one")


def test_many_requests_at_once_keep_their_order(address):
    intake = Intake()

    async def body(frontend):
        prompts = [[number, number + 1] for number in range(300)]
        heard = [[] for _ in prompts]
        for prompt, told in zip(prompts, heard, strict=True):
            frontend.submit(GenerationRequest(prompt=prompt, max_tokens=3), told.append)
        await until(lambda: all(len(told) == 3 for told in heard))
        for (first, second), told in zip(prompts, heard, strict=True):
            assert told == [Token(first), Token(second), Finished("stop")]

    with coordinator(intake, address):
        linked(body, address, "one")


def test_all_events_of_a_turn_are_one_message(address):
    others = [
        wire.other_of(1, 4, Token(99)),  # as of a token with details
        wire.other_of(2, 4, Finished("length")),
    ]
    again = wire.decode_to_frontend(wire.encode(wire.Events([4, 4, 5], [50, 51, 60], others)))
    assert (again.numbers, again.tokens) == ([4, 4, 5], [50, 51, 60])
    assert wire.event_of(again.others[1]) == Finished("length")
    heard = {4: [], 5: []}

    async def body():
        frontend = RemoteFrontend(address, "one")
        frontend._listeners = {number: told.append for number, told in heard.items()}
        frontend._deliver(again)
        frontend._socket.close()
        frontend._context.term()

    asyncio.run(body())
    assert heard == {4: [Token(50), Token(99), Token(51), Finished("length")], 5: [Token(60)]}


def test_cancelling(address):
    intake = Intake()
    intake.holds = True

    async def body(frontend):
        heard = []
        number = frontend.submit(REQUEST, heard.append)
        await until(lambda: intake.asked)
        frontend.cancel(number)
        await until(lambda: intake.cancelled == [0])
        intake.listeners[0](Token(1))
        await asyncio.sleep(0.1)
        assert heard == []

    with coordinator(intake, address):
        linked(body, address, "one")


def test_a_front_end_that_leaves_or_falls_silent_cancels_its_requests(address, caplog):
    intake = Intake()
    intake.holds = True

    async def leave(frontend):
        frontend.submit(REQUEST, lambda event: None)
        await until(lambda: len(intake.asked) == 1)

    async def fall_silent(frontend):
        frontend.submit(REQUEST, lambda event: None)
        await until(lambda: len(intake.asked) == 2)
        frontend._timer.cancel()  # as if its process were stopped
        await until(lambda: intake.cancelled == [0, 1])

    given_up = []
    with coordinator(intake, address, silence_s=1.0) as made:
        made.door.on_silent = given_up.append
        linked(leave, address, "one")
        linked(fall_silent, address, "two")
    assert "two has been silent for" in caplog.text
    assert given_up == ["two"]


def test_a_pause_of_the_coordinator_is_not_silence_of_its_front_ends(address, monkeypatch):
    now_s = 100.0
    monkeypatch.setattr(door_module, "time", SimpleNamespace(monotonic=lambda: now_s))
    acts, given_up = [], []
    door = Door(Intake(), lambda socket, act: acts.append(act))
    door.on_silent = given_up.append
    door.open_local(address)
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.linger = 0
        socket.connect(address)
        socket.send(wire.encode(wire.Hello("one", "y")))
        while not socket.poll(10):
            acts[0]()
        door.turn()
        now_s += 20.0  # between what it has read and this turn
        door.turn()
        assert given_up == []
        now_s += 0.5  # time to read what has come, and nothing has
        door.turn()
        assert given_up == ["one"]
    monkeypatch.undo()
    door.close()


def test_a_coordinator_that_falls_silent_for_a_while(address):
    intake = Intake()
    intake.holds = True

    async def body(frontend):
        heard, later = [], []
        await until(lambda: frontend.is_ready)
        frontend.submit(REQUEST, heard.append)
        await until(lambda: intake.asked)
        made.is_paused = True
        await until(lambda: not frontend.is_ready)
        assert heard == []  # it may come back
        frontend.submit(REQUEST, later.append)
        assert later == [Failed("the coordinator cannot be reached")]
        await until(lambda: heard)
        assert heard[0].message.startswith("the coordinator has been silent for")
        made.is_paused = False
        await until(lambda: frontend.is_ready)
        assert intake.cancelled == [0]
        intake.holds = False
        frontend.submit(REQUEST, later.append)
        await until(lambda: len(later) == 5)

    with coordinator(intake, address) as made:
        linked(body, address, "one", patience=Patience(0.7, 1.5))


def test_a_coordinator_that_is_restarted(address, caplog):
    first, second = Intake(), Intake()
    first.holds = True
    second.model_name = "other"

    async def body(frontend):
        heard = []
        made = Coordinator(first, address)
        try:
            await asyncio.wait_for(frontend.connect(), 10)
            frontend.submit(REQUEST, heard.append)
            await until(lambda: first.asked)
        finally:
            await asyncio.to_thread(made.end)
        await until(lambda: heard)
        assert heard == [Failed("the cluster has stopped")]
        with coordinator(second, address):
            await until(lambda: frontend.is_ready)
            assert frontend.model_name == "other"
            frontend.submit(REQUEST, heard.append)
            await until(lambda: len(heard) == 5)

    async def main():
        with closing(RemoteFrontend(address, "one")) as frontend:
            await body(frontend)

    asyncio.run(main())


def test_a_coordinator_that_does_not_know_a_front_end(address):
    """As after a restart that it did not notice: requests fail, and a new session begins."""
    intake = Intake()
    intake.holds = True

    async def body(frontend):
        heard = []
        frontend.submit(REQUEST, heard.append)
        await until(lambda: intake.asked)
        made.door._visitors.clear()
        await until(lambda: heard)
        assert heard == [Failed("the coordinator has been restarted, or was cut off")]
        await until(lambda: frontend.is_ready)

    with coordinator(intake, address) as made:
        linked(body, address, "one")


def test_keys(tmp_path):
    make_keys(tmp_path, ["coordinator", "site"])
    stranger = tmp_path / "stranger"
    make_keys(stranger, ["site"])
    public = (tmp_path / "public" / "coordinator.key").read_bytes()
    (stranger / "public" / "coordinator.key").write_bytes(public)

    async def body(frontend):
        heard = []
        frontend.submit(REQUEST, heard.append)
        await until(lambda: len(heard) == 4)

    async def knock(address):
        stranger_keys = Keys(stranger, "site")
        with (
            closing(RemoteFrontend(address, "site", stranger_keys)) as frontend,
            pytest.raises(TimeoutError),
        ):
            await asyncio.wait_for(frontend.connect(), 0.5)

    keys = Keys(tmp_path, "coordinator")
    with coordinator(Intake(), "tcp://127.0.0.1:0", keys=keys) as made:
        linked(body, made.address, "site", Keys(tmp_path, "site"))
        asyncio.run(knock(made.address))


def test_an_open_door_needs_keys():
    door = Door(Intake(), lambda socket, act: None)
    with pytest.raises(InputError, match="give keys"):
        door.open("tcp://0.0.0.0:0", None, insecure=False)
    door.close()


@pytest.mark.parametrize(
    "frames",
    [
        [],
        [b""],
        [b"hello"],
        [b"hf\x00\x63rest"],
        [wire.PREFIX + b"\xff\xff"],
        [wire.PREFIX + msgspec.msgpack.encode(["Unknown"])],
        [wire.PREFIX + msgspec.msgpack.encode(["Cancel", [-1]])],
        [wire.PREFIX + b"\x91" * 100_000],
        [wire.encode(wire.Submit(1, GenerationRequest(prompt=(), max_tokens=1)))],
        [*wire.encode_request(1, REQUEST), b"more"],
        [wire.encode(wire.Submit(1, GenerationRequest(prompt=(), max_tokens=0))), b"\0\0\0\0"],
        [wire.encode(wire.Submit(1, REQUEST)), b"\0\0\0\x80"],
        [wire.encode(wire.Submit(1, REQUEST)), b"\0\0\0"],
    ],
)
def test_nonsense_is_refused(address, frames, caplog):
    """The door counts it, and goes on."""
    caplog.set_level(logging.ERROR)
    intake = Intake()
    with coordinator(intake, address) as made, zmq.Context() as context:
        socket = context.socket(zmq.DEALER)
        socket.linger = 0
        socket.connect(address)
        socket.send(wire.encode(wire.Hello("x", "y")))
        assert socket.poll(5000)
        socket.send_multipart(frames or [b""])
        deadline = time.monotonic() + 5
        while not made.door.num_refused and time.monotonic() < deadline:
            time.sleep(0.01)
        socket.close()
        assert made.door.num_refused == 1
        assert not intake.asked


def test_other_versions_are_named():
    with pytest.raises(WireError, match="version 99; this is 1"):
        wire.decode_to_frontend(b"hf\x00\x63")
