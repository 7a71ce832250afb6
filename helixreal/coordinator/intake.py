"""Takes requests of front ends into a running cluster."""

from __future__ import annotations

from array import array
from collections.abc import Iterator

from helixreal.coordinator.attempts import Generation
from helixreal.coordinator.membership import State
from helixreal.coordinator.server import Cluster
from helixreal.engines.token_ids import wrong_token
from helixreal.serving.frontend import GenerationRequest, Listener, Load, Refused
from helixsim.control.load import Arrival
from helixsim.placement.topology import Topology


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


class Intake:
    """The door of a cluster for requests; used from the thread of its loop.

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
        assert cluster.dispatcher is not None
        self.model_name = model_name
        self.max_context_tokens = min(max_context_tokens, longest_context(cluster.topology))
        self.vocabulary = vocabulary
        self._cluster = cluster
        self._dispatcher = cluster.dispatcher

    def take(self, generation: GenerationRequest, listener: Listener) -> int:
        """Take a request in, and return its index, for :meth:`cancel`.

        The listener may be called before this returns: a request may be refused at once.
        """
        cluster = self._cluster
        if (reason := self._wrong(generation)) is not None:
            listener(Refused(reason, None))
            return -1
        prompt = array("i", generation.prompt)
        now = cluster.now
        request = cluster.coordinator.create(Arrival(now, len(prompt), generation.max_tokens))
        self._dispatcher.submit(
            request,
            Generation(
                prompt,
                len(prompt),
                generation.stop_tokens,
                generation.sampling,
                listener,
            ),
            now,
        )
        return request.index

    def _wrong(self, generation: GenerationRequest) -> str | None:
        """Why a request can never be served; None if it can."""
        prompt, max_tokens = generation.prompt, generation.max_tokens
        if not prompt:
            return "the prompt has no tokens"
        if max_tokens < 1:
            return f"the answer must have at least 1 token, not {max_tokens}"
        if len(prompt) + max_tokens > self.max_context_tokens:
            return (
                f"the prompt has {len(prompt)} tokens and the answer may have {max_tokens}; "
                f"the limit of both together is {self.max_context_tokens}"
            )
        wrong = wrong_token(prompt, self.vocabulary)
        return None if wrong is None else f"prompt: {wrong}"

    def cancel(self, index: int) -> None:
        """Cancel a request; its listener is not called any more."""
        self._dispatcher.cancel(index, self._cluster.now)

    def fail_all(self, reason: str) -> None:
        """Let all requests that have not ended fail."""
        self._dispatcher.fail_all(reason)

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
            output_tokens=self._dispatcher.num_output_tokens,
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
