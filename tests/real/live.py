"""A cluster of processes on this machine that answers the requests of a test."""

from __future__ import annotations

import time
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Event

import zmq
from coordinator_process import free_port

from helixreal.coordinator.live import LiveCluster, NoLoad
from helixreal.launch import Launch
from helixreal.local import LocalWorkers
from helixreal.net import messages
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


class Started(dict):
    """The processes of workers by name, each started by itself."""

    def check(self, missing):
        for name in missing:
            self[name].check([name])

    def pid(self, name):
        return self[name].pid(name)


class StandingWorkers:
    """Workers that go from one cluster to the next: the start of an engine takes many seconds.

    An engine is loaded again in its process where the next cluster wants another one. Where a test
    has killed a worker, the next cluster has a new one.
    """

    def __init__(self):
        self._held = ExitStack()
        self._by_entry = {}

    def serve(self, launch, entry):
        """Make a launch on this machine one with standing workers, started where there are none."""
        key = repr(entry)
        if key not in self._by_entry:
            self._by_entry[key] = (f"tcp://127.0.0.1:{free_port()}", Started())
        address, workers = self._by_entry[key]
        for name in launch.inventory.nodes:
            if name in workers and not has_gone(workers.pid(name)):
                continue
            workers[name] = LocalWorkers({name: entry}, address)
            self._held.callback(workers[name].end, patience_s=0.0)
        launch.inventory = replace(launch.inventory, coordinator=address)
        launch.is_local, launch.workers = False, workers

    def close(self):
        self._held.close()


def send_on(cluster):
    """End a cluster; its workers search the next one."""
    for worker in cluster.membership.workers:
        cluster._transport.send(worker.name, messages.Rejoin(worker.incarnation))
    cluster._transport.flush()


@contextmanager
def running(
    scenario,
    entry,
    *,
    time_scale=1.0,
    overrides=(),
    keeps_run=True,
    supervised=False,
    standing=None,
    **settings,
):
    """The cluster as its front end sees it, how it was launched, and its coordinator's side.

    Its workers are started for it, unless there are `standing` ones.
    """
    launch = Launch.local(scenario, overrides, 0, entry, time_scale)
    launch.is_supervised = supervised
    if standing is not None:
        standing.serve(launch, entry)
    for name, value in settings.items():
        setattr(launch, name, value)
    with launch.cluster(load_generator=NoLoad(), keeps_run=keeps_run) as cluster:
        if standing is not None:
            cluster.close = lambda: send_on(cluster)
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
