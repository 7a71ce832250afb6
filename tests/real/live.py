"""A cluster of processes on this machine that answers the requests of a test."""

from __future__ import annotations

import time
from contextlib import contextmanager
from pathlib import Path
from threading import Event

import zmq

from helixreal.coordinator.live import LiveCluster, NoLoad
from helixreal.launch import Launch
from helixreal.serving.frontend import Finished, GenerationRequest, Token

PATIENCE_S = 90


class Answer:
    """What a listener has heard."""

    def __init__(self, prompt, max_tokens, expected=None):
        self.prompt, self.max_tokens, self.expected = prompt, max_tokens, expected
        self.tokens = []
        self.scores = []
        self.ends = []
        self.is_over = Event()

    def __call__(self, event):
        if isinstance(event, Token):
            assert not self.ends
            self.tokens.append(event.token)
            self.scores.append(event.scores)
        else:
            self.ends.append(event)
            self.is_over.set()


@contextmanager
def running(
    scenario, entry, *, time_scale=1.0, overrides=(), keeps_run=True, supervised=False, **settings
):
    """The cluster as its front end sees it, how it was launched, and its coordinator's side."""
    launch = Launch.local(scenario, overrides, 0, entry, time_scale)
    launch.is_supervised = supervised
    for name, value in settings.items():
        setattr(launch, name, value)
    with launch.cluster(load_generator=NoLoad(), keeps_run=keeps_run) as cluster:
        launch.start(cluster)
        live = LiveCluster(
            cluster,
            launch.scenario.llm.name,
            launch.served_context_tokens(),
            vocabulary=launch.vocabulary,
        )
        live.start()
        try:
            yield live, launch, cluster
        finally:
            live.stop()


@contextmanager
def attacker(address):
    """A socket that sends frames to an address, from outside of the cluster."""
    context = zmq.Context()
    socket = context.socket(zmq.PUSH)
    socket.setsockopt(zmq.SNDHWM, 0)
    socket.connect(address)
    try:
        yield socket
    finally:
        socket.close(linger=20_000)
        context.term()


def submit(live, answer, **settings):
    return live.submit(
        GenerationRequest(prompt=answer.prompt, max_tokens=answer.max_tokens, **settings), answer
    )


def check_scores(answer, job):
    """The log probabilities that came are those that one engine alone gives."""
    first, *_ = answer.scores
    found = first.prompt + [each.token for each in answer.scores]
    expected = job.prompt_scores + job.scores
    assert [each.token for each in found] == [each.token for each in expected]
    assert len(expected) >= len(job.tokens)
    for each, other in zip(found, expected, strict=True):
        assert abs(each.logprob - other.logprob) < 1e-3
        assert len(each.top) == len(other.top)
    assert not any(each.prompt for each in answer.scores[1:])


def wait_for(condition, what):
    until = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < until, f"waited in vain: {what}"
        time.sleep(0.02)


def has_gone(pid):
    """Whether a process has ended; one whose code has not been asked for yet has, too."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def check_all_end_right(answers):
    for answer in answers:
        assert answer.is_over.wait(PATIENCE_S), "a request hangs"
        assert answer.ends == [Finished("length")], answer.ends
        assert answer.tokens == answer.expected
