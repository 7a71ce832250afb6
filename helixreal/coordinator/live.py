"""A running cluster behind the front-end interface: other threads submit requests to it."""

from __future__ import annotations

import logging
import os
from array import array
from collections.abc import Callable, Iterator
from contextlib import suppress
from queue import Empty, SimpleQueue
from threading import Event, Thread

from helixreal.coordinator.attempts import Generation
from helixreal.coordinator.membership import State
from helixreal.coordinator.server import Cluster
from helixreal.serving.frontend import (
    GenerationRequest,
    Listener,
    Load,
    Refused,
    StreamEvent,
    Token,
)
from helixsim.control.load import Arrival
from helixsim.placement.topology import Topology

logger = logging.getLogger(__name__)


class NoLoad:
    """A load generator without requests, for clusters whose requests come from clients."""

    def opening(self) -> Iterator[Arrival]:
        """No requests."""
        return iter(())

    def later(self) -> Iterator[Arrival]:
        """No requests."""
        return iter(())

    def after_prompt(self, now: float, share: float | None, index: int) -> Arrival | None:
        """No request."""
        return None

    def after_end(self, now: float, share: float | None, index: int | None) -> Arrival | None:
        """No request."""
        return None


class LiveCluster:
    """Runs a cluster in its own thread.

    Parameters
    ----------
    cluster
        A cluster that has begun, with :class:`NoLoad` as its load generator.
    model_name
        Name of the LLM.
    max_context_tokens
        Limit of the tokens of a prompt and its answer together; the KV caches may lower it.
    vocabulary
        Token ids are below this number; None for emulated engines, which do not read them.
    """

    def __init__(
        self,
        cluster: Cluster,
        model_name: str,
        max_context_tokens: int,
        vocabulary: int | None = None,
    ) -> None:
        self.model_name = model_name
        self.max_context_tokens = min(max_context_tokens, longest_context(cluster.topology))
        self.vocabulary = vocabulary
        self._cluster = cluster
        self._tasks: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._readable, self._writable = os.pipe()
        os.set_blocking(self._writable, False)
        self._numbers = iter(range(2**62))
        self._index_of: dict[int, int] = {}
        self._has_ended = Event()
        cluster.wake_by(self._readable, self._do_tasks)
        self._thread = Thread(target=self._run, name="cluster", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Stop the cluster; requests that have not ended fail."""
        if not self._thread.is_alive():
            return
        self._cluster.stopping = True
        self._wake()
        self._thread.join()
        os.close(self._readable)
        os.close(self._writable)

    @property
    def has_ended(self) -> Event:
        """Set when the cluster has stopped, for any reason."""
        return self._has_ended

    def _run(self) -> None:
        try:
            while not self._cluster.stopping:
                self._cluster.poll_once()
        except Exception:
            logger.exception("the cluster has stopped")
        finally:
            self._cluster.stopping = True
            dispatcher = self._cluster.dispatcher
            assert dispatcher is not None
            dispatcher.fail_all("the cluster has stopped")
            self._has_ended.set()

    def _wake(self) -> None:
        with suppress(BlockingIOError, OSError):
            os.write(self._writable, b"x")

    def _do_tasks(self) -> None:
        while True:
            try:
                task = self._tasks.get_nowait()
            except Empty:
                return
            task()

    # -- interface of front ends ---------------------------------------------------------------

    def submit(self, generation: GenerationRequest, listener: Listener) -> int:
        """Submit a request; the listener receives every token and exactly one final event."""
        number = next(self._numbers)
        if self._cluster.stopping:
            listener(Refused("the cluster has stopped", 1.0, is_unavailable=True))
            return number
        self._tasks.put(lambda: self._take(number, generation, listener))
        self._wake()
        return number

    def _take(self, number: int, generation: GenerationRequest, listener: Listener) -> None:
        cluster = self._cluster
        prompt = array("i", generation.prompt)
        if len(prompt) + generation.max_tokens > self.max_context_tokens:
            listener(
                Refused(
                    f"the prompt has {len(prompt)} tokens and the answer may have "
                    f"{generation.max_tokens}; the limit of both together is "
                    f"{self.max_context_tokens}",
                    None,
                )
            )
            return
        assert cluster.dispatcher is not None
        now = cluster.now
        request = cluster.coordinator.create(Arrival(now, len(prompt), generation.max_tokens))
        self._index_of[number] = request.index

        def on_event(event: StreamEvent) -> None:
            if not isinstance(event, Token):
                self._index_of.pop(number, None)
            listener(event)

        cluster.dispatcher.submit(
            request,
            Generation(
                prompt,
                len(prompt),
                generation.stop_tokens,
                generation.sampling,
                on_event,
            ),
            now,
        )

    def cancel(self, request: int) -> None:
        """Cancel a request; its listener is not called any more."""

        def act() -> None:
            index = self._index_of.pop(request, None)
            if index is not None:
                assert self._cluster.dispatcher is not None
                self._cluster.dispatcher.cancel(index, self._cluster.now)

        self._tasks.put(act)
        self._wake()

    def load(self) -> Load:
        """The load of the cluster now."""
        cluster = self._cluster
        coordinator, recorder = cluster.coordinator, cluster.recorder
        return Load(
            running=len(coordinator.active),
            waiting=len(coordinator.waiting),
            kv_share=cluster.policy.bottleneck_share() or 0.0,
            nodes_up={
                worker.name: worker.state is State.READY for worker in cluster.membership.workers
            },
            prompt_tokens=recorder.num_prompt_tokens,
            output_tokens=cluster.dispatcher.num_output_tokens
            if cluster.dispatcher is not None
            else 0,
            completed=recorder.num_completed,
            failed=recorder.num_failed,
            refused=recorder.num_rejected,
            restarts=coordinator.num_restarts,
            cache_asked_tokens=sum(each.num_asked_tokens for each in cluster.membership.workers),
            cache_hit_tokens=sum(each.num_hit_tokens for each in cluster.membership.workers),
        )

    @property
    def is_ready(self) -> bool:
        """Whether a route covers all layers now."""
        return not self._cluster.stopping and self._cluster.coordinator.has_route


def longest_context(topology: Topology) -> int:
    """Tokens of the longest request whose KV caches fit on some node at each layer."""
    tokens_of_layer: dict[int, int] = {}
    for node in topology.nodes:
        tokens = node.capacity.kv_token_layers // node.num_layers
        for layer in range(node.start_layer, node.end_layer):
            tokens_of_layer[layer] = max(tokens_of_layer.get(layer, 0), tokens)
    return min(tokens_of_layer.values())
