"""Frozen workers, frozen and restarted coordinators: processes find one another again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from coordinator_process import (
    PATIENCE_S,
    CoordinatorProcess,
    free_port,
    processes,
    start_worker,
    write_inventory,
)
from fake_coordinator import FakeCoordinator, worker_in_thread
from live import Answer, check_all_end_right, running, submit, wait_for
from test_lost_workers import made_up
from tiny_scenario import LAYERS, write_tiny_scenario

from helixreal.coordinator.membership import MembershipSettings, State
from helixreal.engines.emulated import EmulatedEngine
from helixreal.inventory import NodeEntry, load_inventory
from helixreal.net import messages
from helixreal.net.transport import Transport
from helixreal.worker import worker as worker_module
from helixsim.control.prefix_cache import PrefixCache

QUICK = MembershipSettings(heartbeat_s=0.1, missing_s=1.0)
PROMPT = [5] * 10


@contextmanager
def frozen(pid, seconds):
    os.kill(pid, signal.SIGSTOP)
    try:
        time.sleep(seconds)
    finally:
        os.kill(pid, signal.SIGCONT)
    yield


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


@contextmanager
def workers_of(inventory, names=LAYERS):
    with ExitStack() as stack:
        processes = {name: start_worker(name, inventory) for name in names}
        for process in processes.values():
            stack.callback(process.wait)
            stack.callback(process.terminate)
        yield processes


def check_answers(coordinator, numbers, max_tokens):
    coordinator.wait_for(lambda: set(numbers) <= set(coordinator.ends), "the answers")
    for number in numbers:
        assert coordinator.ends[number] == (made_up(10, max_tokens), "Finished(reason='length')")


def test_a_frozen_coordinator_keeps_its_workers_and_a_restarted_one_finds_them(tmp_path):
    scenario = write_tiny_scenario(tmp_path)
    inventory = write_inventory(tmp_path, LAYERS, free_port())
    with workers_of(inventory) as workers:
        with CoordinatorProcess(scenario, inventory) as coordinator:
            coordinator.wait_until_ready()
            for number in range(8):
                coordinator.ask(number, PROMPT, 200)
            with frozen(coordinator.process.pid, 2.5):  # 2.5 times what makes a worker lost
                check_answers(coordinator, range(8), 200)
            report = coordinator.reported()
            assert report == {"restarts": 0, "up": dict.fromkeys(LAYERS, True), "cut": []}
            for number in range(8, 12):
                coordinator.ask(number, PROMPT, 400)
            coordinator.process.kill()
            coordinator.process.wait()
        with CoordinatorProcess(scenario, inventory) as coordinator:
            coordinator.wait_until_ready()
            coordinator.ask(1, PROMPT, 50)
            check_answers(coordinator, [1], 50)
            assert all(process.poll() is None for process in workers.values())
        for process in workers.values():  # told to end, by the coordinator that they joined last
            assert process.wait(PATIENCE_S) == 0


@pytest.mark.parametrize("name", ["n0", "n1"])  # with another beside it, and without
def test_a_frozen_worker_comes_back(tmp_path, name):
    scenario = write_tiny_scenario(tmp_path)
    with running(scenario, NodeEntry(), membership=QUICK) as (live, launch, cluster):
        pid = launch.workers.pid(name)
        answers = [Answer(PROMPT, 100, made_up(10, 100)) for _ in range(8)]
        for answer in answers:
            submit(live, answer)
        with frozen(pid, 2.0):
            wait_for(lambda: all(live.load().nodes_up.values()), "the node is back")
        for answer in answers:
            assert answer.is_over.wait(PATIENCE_S), "a request hangs"
            assert answer.tokens == answer.expected[: len(answer.tokens)]
        again = [Answer(PROMPT, 20, made_up(10, 20)) for _ in range(8)]
        for answer in again:
            submit(live, answer)
        check_all_end_right(again)
        assert launch.workers.pid(name) == pid
        cluster.coordinator.validate()
        for worker in cluster.membership.workers:  # nothing of earlier requests is left
            wait_for(lambda w=worker: not w.kv_used_token_layers, "blocks are free")


def test_supervised_workers_are_started_again(tmp_path, caplog):
    scenario = write_tiny_scenario(tmp_path)
    with running(scenario, NodeEntry(), supervised=True, membership=QUICK) as (live, launch, _):
        before = launch.workers.pid("n0")
        os.kill(before, signal.SIGKILL)
        wait_for(lambda: launch.workers.pid("n0") != before, "it is started again")
        wait_for(lambda: not live.load().nodes_up["n0"], "the loss is noticed")
        wait_for(lambda: live.load().nodes_up["n0"], "the node is back")
        answer = Answer(PROMPT, 20, made_up(10, 20))
        submit(live, answer)
        check_all_end_right([answer])
    (line,) = [each for each in caplog.messages if "started again" in each]
    assert line == (
        "the worker of n0 was ended by SIGKILL: it is started again in 0.5 s (1 of 5 within 60 s)"
    )


def test_up_keeps_the_workers_of_this_machine_running_until_it_is_told_to_end(tmp_path):
    scenario = write_tiny_scenario(tmp_path)
    inventory = write_inventory(tmp_path, LAYERS, free_port())
    up = subprocess.Popen(
        [sys.executable, "-m", "helixreal", "up", str(inventory), "--local"],
        stderr=subprocess.PIPE,
        text=True,
    )
    with up, CoordinatorProcess(scenario, inventory) as coordinator:
        coordinator.wait_until_ready()
        (pid,) = processes("worker", "n0", load_inventory(inventory).coordinator)
        os.kill(pid, signal.SIGKILL)
        coordinator.wait_for(lambda: not coordinator.reported()["up"]["n0"], "it is lost")
        coordinator.wait_for(lambda: coordinator.reported()["up"]["n0"], "it is back")
        coordinator.ask(1, PROMPT, 20)
        check_answers(coordinator, [1], 20)
        coordinator.process.stdin.close()
        assert up.wait(PATIENCE_S) == 0
        said = up.stderr.read().splitlines()
    assert said[0] == "running n0, n1, n2"
    assert said[1].startswith("up: the worker of n0 was ended by SIGKILL: it is started again")


def test_local_workers_end_with_the_process_that_started_them(tmp_path):
    with CoordinatorProcess(write_tiny_scenario(tmp_path)) as coordinator:
        coordinator.wait_until_ready()
        pids = coordinator.ready["pids"].values()
        assert all(map(is_running, pids))
        coordinator.process.kill()
        coordinator.process.wait()
    wait_for(lambda: not any(map(is_running, pids)), "the workers have ended")


def test_a_worker_gives_up_with_an_error():
    command = ["worker", "--node", "n0", "--coordinator", f"127.0.0.1:{free_port()}"]
    ended = subprocess.run(
        [sys.executable, "-m", "helixreal", *command, "--give-up-after", "0.5 s"],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert ended.returncode == 2
    assert "has been silent for 0.5 s: given up (--give-up-after)" in ended.stderr


class CountedEngines:
    """Makes engines that count: how many were made, and which are closed."""

    def __init__(self):
        self.made = []

    def __call__(self, name, spec):
        self.made.append(spec)
        return EmulatedEngine(1600, spec.end_layer, spec.num_layers, 8.0)


@pytest.mark.parametrize("same", [True, False])
def test_a_loaded_engine_is_kept_where_it_suits_the_next_assignment(monkeypatch, same):
    engines = CountedEngines()
    monkeypatch.setattr(worker_module, "make_engine", engines)
    with Transport("tcp://127.0.0.1:0") as home:
        fake = FakeCoordinator(home)
        with worker_in_thread("b", home.address, engine="torch"):
            fake.hear_until(lambda: fake.state("b") is State.READY, "b is ready")
            worker = fake.membership.workers[1]
            before = worker.incarnation
            fake.hear(0.6)
            assert worker.state is State.READY
            worker.mark_lost()  # as if it had been silent; its next heartbeat is answered
            if not same:
                placed = worker.placed
                limits = type(placed.capacity)(100, 7, 7, 7, 100)
                object.__setattr__(placed, "capacity", limits)
            fake.hear_until(lambda: worker.state is State.READY, "b is back")
            assert worker.incarnation != before
            assert len(engines.made) == (1 if same else 2)


def test_what_a_kept_engine_has_counted_is_not_counted_again(monkeypatch):
    engine = EmulatedEngine(1600, 2, 2, 8.0)
    engine.kv = PrefixCache(100, 16)
    monkeypatch.setattr(worker_module, "make_engine", lambda name, spec: engine)
    with Transport("tcp://127.0.0.1:0") as home:
        fake = FakeCoordinator(home)
        worker = fake.membership.workers[1]
        with worker_in_thread("b", home.address, engine="torch"):
            fake.hear_until(lambda: worker.state is State.READY, "b is ready")
            engine.kv.num_asked_tokens, engine.kv.num_hit_tokens = 120, 64
            fake.hear_until(lambda: worker.num_asked_tokens == 120, "its counts are known")
            worker.mark_lost()  # as if it had been silent; its next heartbeat is answered
            fake.hear_until(lambda: worker.state is State.READY, "b is back")
            engine.kv.num_asked_tokens, engine.kv.num_hit_tokens = 150, 80
            fake.hear_until(lambda: worker.num_asked_tokens != 120, "its counts are known again")
            assert (worker.num_asked_tokens, worker.num_hit_tokens) == (150, 80)


def test_a_worker_searches_a_coordinator_that_is_silent_and_goes_on_when_it_is_back():
    with Transport("tcp://127.0.0.1:0") as home:
        fake = FakeCoordinator(home)
        with worker_in_thread("b", home.address) as worker:
            fake.hear_until(lambda: fake.state("b") is State.READY, "b is ready")
            before = fake.membership.workers[1].incarnation
            time.sleep(1.0)  # no heartbeats of the coordinator: the worker says hello
            assert worker.end_reason is None
            fake.hear(0.5)
            assert fake.membership.workers[1].incarnation == before
            assert fake.state("b") is State.READY


def test_a_worker_that_cannot_hear_the_coordinator_is_lost():
    with Transport("tcp://127.0.0.1:0") as home:
        fake = FakeCoordinator(home)
        with worker_in_thread("b", home.address):
            fake.hear_until(lambda: fake.state("b") is State.READY, "b is ready")
            before = fake.membership.workers[1].incarnation
            send = home.send
            home.send = lambda name, message, frames=(): (
                isinstance(message, messages.Alive) or send(name, message, frames)
            )
            fake.hear_until(
                lambda: fake.membership.workers[1].incarnation != before, "it joins anew"
            )
            assert fake.membership.lost_nodes == [1]
