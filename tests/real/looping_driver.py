"""Drives a looping executor on a real engine in this process: one node that holds all layers."""

from __future__ import annotations

from array import array
from types import SimpleNamespace

from helixreal.net.messages import Answer, Stage
from helixreal.worker.looping_executor import NO_TOKEN, FirstSequence, LoopingExecutor
from helixreal.worker.runner import TimedRunner
from helixsim.control.node_schedulers import NODE_SCHEDULERS, NodeSchedulerInputs
from helixsim.profiles.machine import Capacity
from helixsim.steps import Step

LIMITS = Capacity(10**9, 10**6, 10**6, 10**6, 10**9)


def _one_second(step: Step, now: float) -> tuple[list[float], float]:
    return [now + 1.0 for _ in step.passes], now + 1.0


class Served:
    """What has been served: tokens by key, and the scheduler's account.

    Attributes
    ----------
    tokens
        Key -> tokens of the answer.
    sequences
        Key -> its sequence.
    """

    def __init__(self, engine, costs, num_layers):
        self.tokens, self.sequences = {}, {}
        self.scheduler = NODE_SCHEDULERS.get("vllm")(
            NodeSchedulerInputs(
                name="node",
                start_layer=0,
                end_layer=num_layers,
                entry_layers=(),
                limits=LIMITS,
                kv=engine.kv,
                engine=costs,
                num_llm_layers=num_layers,
            )
        )
        runner = TimedRunner(engine, SimpleNamespace(time_step=_one_second, poll_s=0.0))
        self.executor = LoopingExecutor(self.scheduler, runner, self)
        self._stages = [Stage(0, 0, num_layers)]

    def ask(self, key, prompt, num_output, sampling, at=0.0, priority=0):
        answer = Answer(num_output, priority, at)
        sequence = FirstSequence(key, array("i", prompt), answer, self._stages, sampling)
        self.sequences[key] = self.executor.sequences[key] = sequence
        self.tokens[key] = []
        self.executor.add_arrival(sequence, NO_TOKEN, at)

    def run(self):
        """Serve all that was asked for; the scheduler keeps its invariants."""
        while (due := self.executor.next_event_s()) is not None:
            self.executor.advance(due)
            self.scheduler.validate()
        return self

    # outbox
    def send_tokens(self, keys, tokens, now, scores):
        for key, token in zip(keys, tokens, strict=True):
            self.tokens[key].append(token)

    def failed(self, keys, reason):
        raise AssertionError(f"{keys}: {reason}")
