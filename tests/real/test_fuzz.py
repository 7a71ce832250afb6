"""Ten thousand frames of nonsense: nothing falls over, nothing is carried out, all is counted."""

from __future__ import annotations

import random

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from live import Answer, attacker, check_all_end_right, running, submit, wait_for

from helixreal.engines.emulated import made_up_token
from helixreal.engines.engine import Sampling, Scores, TokenScore
from helixreal.inventory import NodeEntry
from helixreal.net import encoding, messages
from helixreal.net.encoding import WireError

FRAMES = 10_000
NAN, INF = float("nan"), float("inf")

LIMITS = messages.Limits(1000, 1, 100, 10, 1000)
CURVE = messages.Curve([0, 1], [0.0, 1.0])
MACHINE = messages.Machine("A100", "eu", 1e9, 1e9, 1e9)
LLM = messages.Llm("toy", 2, 2.0, 4.0, 8.0, 1.0)
PASS = messages.Pass(
    1, 0, 4, True, True, [messages.Stage(0, 0, 14), messages.Stage(1, 14, 28)], None
)
CHUNK = messages.Pass(3, 0, 4, True, False, PASS.route, is_streamed=True)
PENALIZED = Sampling(repetition_penalty=2.0, prompt_logprobs=1, prompt_tokens=4)
CONTEXT = msgspec.structs.replace(PASS, key=4, sampling_params=PENALIZED, context=bytes(16))
OUT_OF_RANGE = msgspec.structs.replace(PASS, sampling_params=Sampling(logprobs=10**6))
SCORES = Scores(TokenScore(5, -1.0, 2, ((6, -0.5),)), [TokenScore(1, -2.0, 9)])
COMPOSED = messages.Assignment(
    0, 6, MACHINE, LLM, 0, 1, [0], LIMITS, CURVE, CURVE, "paper", "paper", "{}", 9,
    0.1, 1.0, 1.0, 0.0, 0.0, "h",
    emulate_links=True, report_transits=True,
    composition=messages.Composition(256, "auto", "auto", 2.5),
)  # fmt: skip
WHOLE = messages.Pass(2, 0, 4, True, True, PASS.route, None, 0, False, messages.Answer(3, 0, 0.5))
MESSAGES = [
    (messages.Hello("a100-0", "tcp://127.0.0.1:9", "host", "again", "emulated"), []),
    (messages.Hello("unknown", "tcp://127.0.0.1:9", "host", "x", "emulated"), []),
    (
        messages.Assignment(
            0, 6, MACHINE, LLM, 0, 1, [0], LIMITS, CURVE, CURVE, "paper", "paper", "{}", 9,
            0.1, 1.0, 1.0, 0.0, 0.0, "h",
            emulate_links=True, report_transits=True,
        ),
        [],
    ),
    (COMPOSED, []),
    (messages.Ready(99, "x", 1, 1), []),
    (messages.Peers([messages.Peer(77, "unknown", "tcp://127.0.0.1:9")], []), []),
    (messages.Work(6, 0, 0.0, [PASS], [], 1), [bytes(16)]),
    (messages.Work(6, 0, 0.0, [PASS], [], 1), [bytes(3)]),
    (messages.Work(6, 7, 0.0, [PASS], [], 1), [bytes(16)]),
    (messages.Done(0, [10**9], [5], []), []),
    (messages.Done(0, [1, 2], [5, 6], [1.5]), []),
    (messages.Done(0, [1], [5], [], 7, {1: SCORES, 10**9: SCORES}), []),
    (messages.Work(6, 0, 0.0, [CONTEXT], [], 1), [bytes(16)]),
    (messages.Work(6, 0, 0.0, [WHOLE], [], 1), [bytes(16)]),
    (messages.Work(6, 0, 0.0, [CHUNK], [], 1), [bytes(16)]),
    (messages.Tokens(3, [2, 10**9], [5, -1], None), []),
    (messages.OutOfBlocks(3, [10**9]), []),
    (messages.Failure(77, [], "x"), []),
    (messages.Failure(0, [10**9], "x"), []),
    (messages.Heartbeat(4096, "x", 0.0, 1, 1, 1, 1, 1, 1, None, 0.0, 0.0, 0, [], [], []), []),
    (messages.Drop([10**9]), []),
    (messages.Alive(), []),
]  # fmt: skip
REFUSED = [
    (
        msgspec.structs.replace(COMPOSED, composition=messages.Composition(256, 0, "auto", 2.5)),
        [],
    ),
    (
        msgspec.structs.replace(COMPOSED, composition=messages.Composition(256, None, NAN, 2.5)),
        [],
    ),
    (messages.Work(6, 0, 0.0, [PASS], [NAN], 1), [bytes(16)]),
    (messages.Work(0, 14, 0.0, [PASS], [INF], 1), [bytes(4)]),
    (messages.Done(0, [1, 2, 3], [4, 5, 6], [NAN, INF, -1.0]), []),
    (messages.Heartbeat(0, "other", NAN, 1, 1, 1, 1, 1, 1, None, 1e9, 0.0, 0, [NAN], [1], []), []),
    (messages.Work(6, 0, 0.0, [PASS], [], 2), [bytes(16)]),
    (messages.Work(6, 0, 0.0, [], [], 1), [bytes(16)]),
    (messages.Work(6, 0, 0.0, [PASS], [1.0, 2.0], 1), [bytes(16)]),
    (messages.Done(0, [1, 2], [3], []), []),
    (messages.Done(0, [1], [2**31], []), []),
    (messages.Done(0, [1], [5], [], 0, {-1: SCORES}), []),
    (messages.Work(6, 0, 0.0, [OUT_OF_RANGE], [], 1), [bytes(16)]),
    (messages.Tokens(3, [1, 2], [3], None), []),
    (messages.Tokens(3, [1], [2], NAN), []),
    (messages.Tokens(3, [1], [-2], None), []),
    (messages.Alive(), [bytes(4)]),
]


def mutated(rng):
    """Frames of a message with something wrong in them, or of no message at all."""
    kind = rng.randrange(4)
    if kind == 0:
        return [rng.randbytes(rng.randrange(64)) for _ in range(rng.randrange(1, 4))]
    message, frames = rng.choice(MESSAGES + REFUSED)
    parts = [bytearray(part) for part in encoding.encode(message, frames)]
    if kind == 1:
        for _ in range(rng.randrange(1, 4)):
            part = rng.choice(parts)
            if part:
                part[rng.randrange(len(part))] = rng.randrange(256)
    elif kind == 2:
        part = rng.choice(parts)
        del part[rng.randrange(len(part) + 1) :]
        if rng.random() < 0.3:
            parts.append(bytearray(rng.randbytes(8)))
    return [bytes(part) for part in parts]


def answers_right(live, count=5):
    answers = []
    for number in range(1, count + 1):
        expected = [made_up_token(number + i) for i in range(20)]
        answers.append(Answer([1] * number, 20, expected))
        submit(live, answers[-1])
    check_all_end_right(answers)


@pytest.mark.parametrize("node", ["paper", "vllm"])
@pytest.mark.parametrize("target", ["coordinator", "worker"])
def test_nonsense_does_no_harm(target, node):
    rng = random.Random(target)
    settings = [f"scheduler.node={node}", "physics=calibrated"] if node == "vllm" else []
    with running("quickstart", NodeEntry(), time_scale=20.0, overrides=settings) as (
        live,
        launch,
        cluster,
    ):
        answers_right(live)
        address = cluster.address
        if target == "worker":
            address = cluster.membership.workers[0].address
        with attacker(address) as socket:
            for _ in range(FRAMES):
                socket.send_multipart(mutated(rng))

        def refused():
            return cluster.about()["messages_refused"]

        wait_for(lambda: refused() > FRAMES / 4, "most are refused")
        answers_right(live, 20)
        launch.workers.check(list(launch.inventory.nodes))  # all of them still run


def test_every_message_goes_there_and_back():
    for message, frames in MESSAGES:
        again, rest = encoding.decode(encoding.encode(message, frames))
        assert msgspec.json.encode(again) == msgspec.json.encode(message)
        assert [bytes(frame) for frame in rest] == frames


@pytest.mark.parametrize("number", range(len(REFUSED)))
def test_what_cannot_be_is_refused(number):
    with pytest.raises(WireError):
        encoding.decode(encoding.encode(*REFUSED[number]))


def test_large_frames_are_sent_apart():
    work = messages.Work(6, 0, 0.0, [PASS], [], 2)
    for frames in ([bytes(10), bytes(20)], [bytes(encoding.MAX_INLINE_BYTES + 1)]):
        work.frames = len(frames)
        parts = encoding.encode(work, frames)
        assert parts[1:] == frames
        assert [bytes(frame) for frame in encoding.decode(parts)[1]] == frames


@settings(max_examples=500, deadline=None)
@given(st.lists(st.binary(max_size=200), max_size=3))
def test_bytes_are_a_message_or_refused(parts):
    with pytest.raises(WireError):
        encoding.decode(parts)


@settings(max_examples=500, deadline=None)
@given(st.integers(0, 2**32))
def test_what_is_nearly_a_message_is_one_or_refused(seed):
    parts = mutated(random.Random(seed))
    try:
        message, frames = encoding.decode(parts)
    except WireError:
        return
    assert len(frames) == message.num_frames


def test_other_versions_are_named():
    (part,) = encoding.encode(messages.Alive())
    other = part[:2] + (7).to_bytes(2, "big") + part[4:]
    with pytest.raises(WireError, match=f"version 7; this is {encoding.VERSION}"):
        encoding.decode([other])
