"""A link between two workers is cut while both reach the coordinator."""

from __future__ import annotations

import time
from contextlib import contextmanager

import pytest
from live import PATIENCE_S, Answer, check_all_end_right, running, submit, wait_for
from proxy import Proxy
from test_lost_workers import made_up
from tiny_scenario import write_tiny_scenario

from helixreal.coordinator import introductions
from helixreal.coordinator.deadlines import TimeLimits
from helixreal.coordinator.membership import MembershipSettings
from helixreal.inventory import NodeEntry
from helixreal.net import messages
from helixreal.serving.frontend import Failed, Finished

QUICK = MembershipSettings(heartbeat_s=0.1, missing_s=2.5)
PROMPT = [5] * 10
STAGES = {"n0": [0, 4], "n1": [4, 8], "n2": [0, 4], "n3": [4, 8]}
TWO_STAGES = {"n0": [0, 4], "n1": [4, 8]}


@contextmanager
def cluster_behind_proxies(folder, monkeypatch, layers, *, source, target, node="paper", **more):
    """A cluster in which one worker is told the address of a proxy in place of a peer's."""
    proxies = []
    original = introductions.Introductions.peers

    def peers(self, worker, policy, workers):
        found = original(self, worker, policy, workers)
        if worker.name != source:
            return found
        return messages.Peers(
            [proxied(peer) if peer.name == target else peer for peer in found.peers],
            found.links,
            found.ways_back,
        )

    def proxied(peer):
        proxies.append(Proxy(peer.address))
        return messages.Peer(peer.index, peer.name, proxies[-1].address)

    monkeypatch.setattr(introductions.Introductions, "peers", peers)
    scheduler = {"node": node} if node else {}
    scenario = write_tiny_scenario(folder, layers, scheduler=scheduler)
    overrides = ["physics=calibrated"] if node == "vllm" else []
    with running(scenario, NodeEntry(), overrides=overrides, membership=QUICK, **more) as found:
        (proxy,) = proxies
        try:
            yield (*found, proxy)
        finally:
            proxy.close()


def ask(live, count, max_tokens):
    answers = [Answer(PROMPT, max_tokens, made_up(10, max_tokens)) for _ in range(count)]
    for answer in answers:
        submit(live, answer)
    return answers


@pytest.mark.parametrize(
    ("node", "source", "target"),
    [
        (None, "n0", "n1"),
        ("vllm", "n1", "n0"),  # the way of tokens back
    ],
)
def test_routes_avoid_a_link_that_is_cut_until_it_heals(
    tmp_path, monkeypatch, caplog, node, source, target
):
    with cluster_behind_proxies(
        tmp_path, monkeypatch, STAGES, source=source, target=target, node=node
    ) as (live, _, cluster, proxy):
        answers = ask(live, 8, 100)
        wait_for(lambda: sum(len(each.tokens) for each in answers) > 50, "some tokens")
        proxy.cut()
        check_all_end_right(answers)
        assert all(live.load().nodes_up.values())
        assert f"{target} does not hear {source}: routes avoid the link" in caplog.messages
        check_all_end_right(ask(live, 8, 20))
        proxy.heal()
        wait_for(lambda: not cluster.coordinator.cut, "the link is used again")
        check_all_end_right(ask(live, 8, 20))
        cluster.coordinator.validate()


def test_without_another_way_requests_fail_until_the_link_heals(tmp_path, monkeypatch):
    with cluster_behind_proxies(
        tmp_path, monkeypatch, TWO_STAGES, source="n0", target="n1", node=None
    ) as (live, _, _, proxy):
        answers = ask(live, 4, 100)
        wait_for(lambda: sum(len(each.tokens) for each in answers) > 50, "some tokens")
        proxy.cut()
        for answer in answers:
            assert answer.is_over.wait(PATIENCE_S), "a request hangs"
            if answer.ends != [Finished("length")]:
                assert answer.ends == [Failed("the link n0 -> n1 was lost")]
        assert not live.is_ready
        proxy.heal()
        wait_for(lambda: live.is_ready, "the link is used again")
        check_all_end_right(ask(live, 4, 20))


@pytest.mark.parametrize("node", [None, "vllm"])
def test_requests_whose_pass_was_lost_begin_anew(tmp_path, monkeypatch, caplog, node):
    """Connections that break lose what was under way; the link works again at once."""
    with cluster_behind_proxies(
        tmp_path,
        monkeypatch,
        TWO_STAGES,
        source="n0",
        target="n1",
        node=node,
        limits=TimeLimits(pass_floor_s=1.0),
    ) as (live, _, cluster, proxy):
        answers = ask(live, 4, 100)
        wait_for(lambda: sum(len(each.tokens) for each in answers) > 50, "some tokens")
        proxy.cut()
        time.sleep(0.3)  # passes are at the proxy now
        proxy.reset()
        proxy.heal()
        check_all_end_right(answers)
        assert cluster.coordinator.num_restarts
        cluster.coordinator.validate()


def test_a_request_ends_at_its_time_limit(tmp_path):
    scenario = write_tiny_scenario(tmp_path)
    with running(scenario, NodeEntry(), limits=TimeLimits(request_s=3.0)) as (live, _, cluster):
        answer = Answer(PROMPT, 5000, made_up(10, 5000))
        submit(live, answer)
        assert answer.is_over.wait(PATIENCE_S)
        assert answer.ends == [Failed("the answer took longer than 3 s (--request-timeout)")]
        assert answer.tokens == answer.expected[: len(answer.tokens)]
        wait_for(lambda: not cluster.coordinator.active, "it is gone")
        check_all_end_right(ask(live, 4, 5))
